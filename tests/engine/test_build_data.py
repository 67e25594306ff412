"""Settings of the data reach the parts they are meant for."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clipkit.addons.base import AddOn
from clipkit.config.load import load_config
from clipkit.data.streaming import StreamingLoader
from clipkit.data.tar_index import load_index
from clipkit.data.token_cache import TokenCache
from clipkit.dist.group import World
from clipkit.engine import build
from clipkit.engine.build_data import build_loader, build_reader
from clipkit.errors import DataError
from tests.e2e.runs import write_run
from tests.fixtures_shards import noise_bytes, sample_members, write_shards, write_tar


def loader_of(tmp_path: Path, *overrides: str, addons: list[AddOn] | None = None, **data: Any):  # type: ignore[no-untyped-def]
    """The loader of a small run."""
    config = load_config(write_run(tmp_path, data={"workers": 0, **data}), overrides)
    _, towers = build.build_model(config, [])
    return build_loader(config, towers, addons or [], World())


def first(loader: Any, count: int = 1) -> list[Any]:
    """Batches of a loader."""
    return list(itertools.islice(iter(loader), count))


def test_epochs_become_steps(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    config = load_config(path, ["train.total_steps=null", "train.epochs=2.5"])
    _, towers = build.build_model(config, [])
    loader = build_loader(config, towers, [], World())
    assert loader.batches_per_epoch == 6  # 100 samples in 4 streams of 25, 4 of each stream a batch
    assert build.total_steps_of(config, loader) == 15


def test_a_mixture_by_weight(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_shards(tmp_path / name, [30])
    sources = [{"shards": str(tmp_path / n), "weight": w} for n, w in (("a", 3), ("b", 1))]
    loader = loader_of(tmp_path, train=[], sources=sources)
    ids = torch.cat([b.ids for b in first(loader, 10)])
    assert int((ids >= 30).sum()) == 40
    assert [s.name for s in loader.sources] == ["data.sources.0", "data.sources.1"]


def test_one_source_is_as_data_train(tmp_path: Path) -> None:
    plain = loader_of(tmp_path)
    named = loader_of(tmp_path, train=[], sources=[{"shards": str(tmp_path / "data" / "train")}])
    assert plain.state_dict() == named.state_dict()
    assert torch.equal(first(plain)[0].images["image"], first(named)[0].images["image"])


def test_a_list_of_files_is_the_same_data(tmp_path: Path) -> None:
    lines = ["filepath,title"]
    for i in range(20):
        (tmp_path / f"{i}.png").write_bytes(noise_bytes(i))
        lines.append(f"{i}.png,caption {i}")
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    write_shards(tmp_path / "tars", [20])
    table = first(loader_of(tmp_path, train=str(tmp_path / "list.csv")))[0]
    tars = first(loader_of(tmp_path, train=str(tmp_path / "tars")))[0]
    for name in ("images", "texts"):
        for a, b in zip(getattr(table, name).values(), getattr(tars, name).values()):
            assert torch.equal(a, b)


def test_what_a_sample_is_made_of(tmp_path: Path) -> None:
    overrides = ["data.views={small: {size: 4, flip: 0}}", "data.exif=apply", "data.flip=0.5"]
    overrides += ["data.caption_keys=[txt, json.more]", "data.caption_rule=weighted"]
    overrides += ["data.caption_weights=[1, 2]", "data.image_members={negative: [neg.jpg]}"]
    overrides += ["data.limits.max_bytes=7", "data.limits.max_pixels=9"]
    data = load_config(write_run(tmp_path), overrides).data
    reader = build_reader(data, (8, 6), [])
    assert {n: (v.size, v.flip) for n, v in reader.views.items()} == {
        "image": ((8, 6), 0.5),
        "small": ((4, 4), 0.0),
    }
    assert reader.views["small"].scale == reader.views["image"].scale == (0.5, 1.0)
    assert {"png", "txt", "json", "neg.jpg"} <= set(reader.wanted)
    assert (reader.exif, reader.max_bytes, reader.max_pixels) == ("apply", 7, 9)
    assert (reader.caption_rule, reader.caption_weights) == ("weighted", (1, 2))


class Marks(AddOn):
    """Writes into pixels, text and extras of every sample, from its generator."""

    def sample(self, sample, rng):  # type: ignore[no-untyped-def]
        """The hook."""
        sample.images["image"][:] = 7
        sample.texts["text"] = [f"{sample.texts['text'][0]} {sample.key}"]
        sample.extras["draw"] = torch.tensor(rng.random())
        return sample


def test_an_addon_without_the_hook_costs_nothing(tmp_path: Path) -> None:
    marks = Marks()
    data = load_config(write_run(tmp_path), []).data
    assert build_reader(data, (8, 6), [AddOn()]).hooks == []
    assert build_reader(data, (8, 6), [AddOn(), marks]).hooks == [marks.sample]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_sample_hook_of_an_addon(tmp_path: Path, workers: int) -> None:
    views = {"small": {"size": 4}}
    addons: list[AddOn] = [Marks()]
    loader = loader_of(tmp_path, addons=addons, views=views, workers=workers, token_cache=9)
    batch = first(loader)[0]
    assert (batch.images["image"] == 7).all()
    assert batch.images["small"].shape[1:] == (3, 4, 4) and batch.images["small"].float().std() > 9
    again = first(loader_of(tmp_path, addons=addons, views=views))[0]
    assert torch.equal(batch.extras["draw"], again.extras["draw"])
    assert torch.equal(batch.texts["text"], again.texts["text"])
    plain = first(loader_of(tmp_path, views=views))[0]
    assert torch.equal(batch.images["small"], plain.images["small"])  # a hook changes no other draw
    assert not torch.equal(batch.texts["text"], plain.texts["text"])


def test_tokens_are_remembered_on_request(tmp_path: Path) -> None:
    cached, plain = loader_of(tmp_path, token_cache=100), loader_of(tmp_path)
    assert isinstance(cached._batches.tokenizer, TokenCache)
    assert not isinstance(plain._batches.tokenizer, TokenCache)
    for a, b in zip(first(cached, 3), first(plain, 3)):
        assert torch.equal(a.texts["text"], b.texts["text"]) and a.texts["text"].dtype == torch.long


def test_hard_batches(tmp_path: Path) -> None:
    path = tmp_path / "near.npy"
    np.save(path, np.arange(100)[:, None] ^ 1)
    hard = {"neighbours": str(path), "group": 2, "batches": 3}

    def pairs(loader: Any) -> int:
        together = [set(b.ids.tolist()) for b in first(loader, 6)]
        return sum(i ^ 1 in ids for ids in together for i in ids)

    assert pairs(loader_of(tmp_path, hard_batches=hard)) > 1.5 * pairs(loader_of(tmp_path))
    np.savez(tmp_path / "two.npz", a=np.arange(3))
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "evil.npy").write_bytes(b"\x80\x04cposix\nsystem\n.")
    for name, message in {
        "two.npz": "several arrays",
        "text.npy": "cannot be read as .npy",
        "evil.npy": "cannot be read as .npy",
        "absent.npy": "cannot be read as .npy",
    }.items():
        with pytest.raises(DataError, match=message):
            loader_of(tmp_path, hard_batches={**hard, "neighbours": str(tmp_path / name)})
    np.save(path, np.arange(99)[:, None])
    with pytest.raises(DataError, match="99"):
        loader_of(tmp_path, hard_batches=hard)


def test_hard_batches_mined_over_other_shards(tmp_path: Path) -> None:
    paths = [
        str(write_tar(tmp_path / name / "000.tar", sample_members(first, 8)))
        for name, first in (("one", 0), ("two", 8))
    ]
    near = tmp_path / "near.npy"
    np.save(near, np.arange(16)[:, None] ^ 1)
    hard = {"neighbours": str(near), "group": 2, "batches": 2}
    note = tmp_path / "near.npy.json"
    told = [{"path": p, "rows": 8, "index": load_index(p).checksum} for p in paths]
    note.write_text(json.dumps({"shards": told}))
    loader_of(tmp_path, train=paths, hard_batches=hard)
    with pytest.raises(DataError, match="near.npy: .*shard 0 is another 000.tar.*mine"):
        loader_of(tmp_path, train=paths[::-1], hard_batches=hard)
    note.write_text('{"shards": [3]}')
    with pytest.raises(DataError, match="near.npy.json: is damaged.*clipkit-data mine"):
        loader_of(tmp_path, train=paths, hard_batches=hard)


def test_remote_shards_come_through_the_cache(tmp_path: Path) -> None:
    import fsspec

    files = fsspec.filesystem("memory")
    for path in write_shards(tmp_path / "remote", [20, 20]):
        files.pipe(f"/bucket/{Path(path).name}", Path(path).read_bytes())
    cache = tmp_path / "cache"
    loader = loader_of(
        tmp_path, train="memory://bucket/{000..001}.tar", cache_dir=str(cache), retries=0
    )
    local = loader_of(tmp_path, train=str(tmp_path / "remote"))
    for a, b in zip(first(loader, 4), first(local, 4)):
        assert torch.equal(a.images["image"], b.images["image"])
    assert len(list(cache.glob("*.tar"))) == 2
    assert loader._batches.prefetch_steps and not local._batches.prefetch_steps


def test_streaming_gets_its_settings(tmp_path: Path) -> None:
    loader = loader_of(tmp_path, "data.virtual_epoch=32", mode="streaming", shuffle_buffer=5)
    assert isinstance(loader, StreamingLoader) and loader.batches_per_epoch == 2
    assert loader.state_dict()["order"]["shuffle_buffer"] == 5
    assert first(loader)[0].num_samples == 16
