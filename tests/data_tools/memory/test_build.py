"""What a build writes, measures, repeats and refuses; and how a memory grows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from clipkit.errors import ConfigError, DataError
from clipkit.retrieval.memory import FolderMemory
from data_tools.memory import build as module
from data_tools.memory.build import IndexOptions, build_memory
from data_tools.memory.recall import recall, sampled_rows, true_scores
from data_tools.memory.sources import open_sources
from tests.data_tools.memory.cells import embed_by_hand, features_of
from tests.fixtures_shards import write_shards


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("build")
    paths = write_shards(root / "in", [200, 250])
    embed_by_hand(root / "a", paths[:1], features_of(200, 16), features_of(200, 16, 1))
    captions = [f"c{i}" if i % 4 else "" for i in range(250)]
    texts = features_of(250, 16, 3)
    embed_by_hand(root / "b", paths[1:], features_of(250, 16, 2), texts, captions, skip={5})
    build_memory(open_sources([root / "a", root / "b"]), root / "whole")
    return root


def test_what_is_written(place: Path) -> None:
    memory = FolderMemory(place / "whole")
    assert sorted(p.name for p in (place / "whole").iterdir()) == [
        "image.faiss",
        "image.npy",
        "memory.json",
        "rows.parquet",
        "summary.json",
        "text.faiss",
        "text.npy",
    ]
    assert (len(memory), memory.dim, memory.facts["captions"]) == (449, 16, 449 - 63)
    assert memory.facts["sides"]["text"] == {
        "rows": 386,
        "kind": "flat",
        "recall": {"text": 1.0, "image": 1.0},
    }
    summary = json.loads((place / "whole" / "summary.json").read_text())
    assert summary["tool"] == "memory" and summary["rows"] == 449
    keys = memory.table(["key"])["key"].to_pylist()
    assert keys == [f"{i:06d}" for i in range(450) if i != 205]


def test_kind_follows_the_rows_of_a_side(place: Path, tmp_path: Path) -> None:
    facts = build_memory(
        open_sources([place / "a", place / "b"]), tmp_path / "m", IndexOptions(flat_below=400)
    )
    assert facts["sides"]["image"]["kind"] == "ivf_sq8" and facts["sides"]["image"]["nlist"] == 11
    assert facts["sides"]["text"]["kind"] == "flat"


def test_recall_is_measured_and_nprobe_rises_to_the_target(place: Path, tmp_path: Path) -> None:
    sources = open_sources([place / "a", place / "b"])
    found = {}
    for target, most in ((0.0, 16), (0.8, 16), (1.0, 3)):
        options = IndexOptions(
            0, nlist=16, nprobe=1, max_nprobe=most, target_recall=target, queries=100, seed=4
        )
        out = tmp_path / f"m{target}"
        side = build_memory(sources, out, options)["sides"]["image"]
        found[target] = side
        stored = FolderMemory(out).side("image")
        assert stored.nprobe == side["nprobe"] <= most and side["nlist"] == 16
        own = sampled_rows(np.arange(449), 100, 4)
        queries = stored.unit(own)
        truth = true_scores(stored, queries, own, 10)
        assert side["recall"]["image"] == recall(stored, queries, own, truth)
    assert found[0.0]["nprobe"] == 1 and found[0.0]["recall"]["image"] < 0.8
    assert found[0.8]["nprobe"] > 1 and found[0.8]["recall"]["image"] >= 0.8
    assert found[1.0]["nprobe"] == 3  # the cap
    assert set(found[0.0]["recall"]) == {"image", "text"}


def test_a_grown_memory_keeps_the_numbers_of_its_rows(place: Path, tmp_path: Path) -> None:
    build_memory(open_sources([place / "a"]), tmp_path / "old")
    build_memory(open_sources([place / "b"], tmp_path / "old"), tmp_path / "new")
    old, new, whole = (
        FolderMemory(path) for path in (tmp_path / "old", tmp_path / "new", place / "whole")
    )
    rows = torch.arange(200)
    for side in ("image", "text"):
        assert torch.equal(new.features(side, rows), old.features(side, rows))
        every = torch.arange(449)
        assert torch.equal(new.features(side, every), whole.features(side, every))
    assert new.table(["shard", "key"]).equals(whole.table(["shard", "key"]))
    assert new.name == whole.name != old.name  # the same rows, however they came together


def test_done_is_not_done_again_and_other_inputs_are_refused(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources, out = open_sources([place / "a"]), tmp_path / "m"
    first = build_memory(sources, out)
    time = (out / "memory.json").stat().st_mtime_ns
    with monkeypatch.context() as patched:
        patched.setattr(module, "new_folder", lambda out: pytest.fail("built again"))
        assert build_memory(sources, out) == first
    assert (out / "memory.json").stat().st_mtime_ns == time
    for others, options in ((open_sources([place / "b"]), IndexOptions()),
                            (sources, IndexOptions(seed=1))):  # fmt: skip
        with pytest.raises(DataError, match="m exists: name a new or an empty folder"):
            build_memory(others, out, options)
    assert FolderMemory(out).facts == first


def test_a_changed_memory_is_not_done(place: Path, tmp_path: Path) -> None:
    sources, out = open_sources([place / "a"]), tmp_path / "m"
    build_memory(sources, out)
    content = bytearray((out / "text.npy").read_bytes())
    content[-1] ^= 1
    (out / "text.npy").write_bytes(bytes(content))
    with pytest.raises(DataError, match="text.npy: is not what was written"):
        build_memory(sources, out)
    facts = json.loads((out / "memory.json").read_text())
    (out / "memory.json").write_text(json.dumps({**facts, "sha256": None}))
    with pytest.raises(DataError, match="image.faiss: is not what was written; remove .*m and"):
        module.verify(FolderMemory(out))


def test_nothing_is_left_of_a_broken_build(place: Path, tmp_path: Path) -> None:
    bad = features_of(200, 16)
    bad[77, 3] = np.nan
    paths = [str(place / "in" / "000.tar")]
    embed_by_hand(tmp_path / "bad", paths, bad, features_of(200, 16, 1))
    with pytest.raises(DataError, match="bad: holds NaN or infinity"):
        build_memory(open_sources([place / "a", tmp_path / "bad"]), tmp_path / "m")
    assert [p.name for p in tmp_path.iterdir()] == ["bad"]


def test_options_that_cannot_be_met(place: Path, tmp_path: Path) -> None:
    sources = open_sources([place / "a"])
    for options, named in (
        (IndexOptions(nprobe=9, max_nprobe=8), "--nprobe 9"),
        (IndexOptions(target_recall=1.5), "--target-recall 1.5"),
    ):
        with pytest.raises(ConfigError, match=named):
            build_memory(sources, tmp_path / "m", options)


def test_one_side_alone(place: Path, tmp_path: Path) -> None:
    build_memory(open_sources([place / "b"]), tmp_path / "m", IndexOptions(sides=("text",)))
    memory = FolderMemory(tmp_path / "m")
    assert not (tmp_path / "m" / "image.npy").exists() and len(memory.side("text")) == 186
