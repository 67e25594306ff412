"""The add-on as a whole: its settings, and what a loader and a run make of it."""

from __future__ import annotations

import itertools
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch

from clipkit.addons.hard_negatives import HardNegatives
from clipkit.checkpoint.read import CheckpointReader
from clipkit.checkpoint.verify import find_checkpoint
from clipkit.config.load import load_config
from clipkit.config.parts import read_part
from clipkit.contracts import Batch
from clipkit.data.loader import IndexedLoader
from clipkit.data.negatives import KINDS
from clipkit.data.negatives.editor import STYLES
from clipkit.data.samples import Sample
from clipkit.dist.group import World
from clipkit.engine.build import build_run
from clipkit.engine.build_data import build_loader
from clipkit.engine.preflight import preflight
from clipkit.engine.trainer import fit
from clipkit.errors import ConfigError
from tests.addons.hard_negatives.cells import mined_batches, valid_share
from tests.e2e.runs import write_run
from tests.fixtures_shards import noise_bytes, number_tokenizer, write_tar
from tests.tiny_model import tiny_batch

NUM_SAMPLES = 48
JSON_ONLY: dict[str, Any] = {"kind": "hard_negatives", "source": "json"}


def write_hard_shards(folder: Path, without: tuple[int, ...] = ()) -> list[str]:
    """Samples "caption i" with a negative image and negatives 1000 + 10 * i and on; those
    of `without` have no negatives."""
    paths = []
    for shard in range(2):
        members: list[tuple[str, bytes]] = []
        for i in range(shard * NUM_SAMPLES // 2, (shard + 1) * NUM_SAMPLES // 2):
            negatives = [] if i in without else [f"not {i} {1000 + 10 * i + k}" for k in range(3)]
            members += [
                (f"{i:06d}.png", noise_bytes(i)),
                (f"{i:06d}.neg.png", noise_bytes(1000 + i)),
                (f"{i:06d}.txt", f"caption {i}".encode()),
                (f"{i:06d}.json", json.dumps({"negatives": negatives}).encode()),
            ]
        paths.append(str(write_tar(folder / f"{shard}.tar", members)))
    return paths


def partner_of(i: Any) -> Any:
    """The sample as far from the other end, in another shard."""
    return NUM_SAMPLES - 1 - i


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_hard_shards(tmp_path_factory.mktemp("shards"))


class TestSettings:
    @pytest.mark.parametrize(
        ("settings", "named"),
        [
            ({"count": 0}, "count=0: choose at least 1"),
            ({"weight": 1.5}, "weight=1.5"),
            ({"weight": -0.1}, "weight=-0.1"),
            ({"triplet": True, "source": "json", "count": 2}, "set count: 1"),
            ({"triplet": True}, "set source: json"),
            ({"triplet": True, "source": "json", "image_negatives": True}, "choose one"),
            ({"triplet": True, "source": "json", "tags": ["size"]}, "leave tags out"),
            ({"tags": ["size"]}, "source: json or both"),
            ({"source": "json", "kinds": ["size"]}, "source: rules or both"),
            ({"kinds": []}, "kinds: the list is empty; leave it out for all"),
            ({"styles": []}, "styles: the list is empty"),
            ({"source": "json", "tags": []}, "tags: the list is empty"),
        ],
    )
    def test_what_does_not_fit(self, settings: dict[str, Any], named: str) -> None:
        with pytest.raises(ConfigError, match=f"addons.hard_negatives.*{named}"):
            HardNegatives(**settings)

    def test_documented(self) -> None:
        info = read_part("addons", "hard_negatives")
        assert info.doc.endswith(".") and all(p.doc for p in info.parameters)

    def test_kinds_and_styles_are_those_of_the_rules(self) -> None:
        found = {p.name: p.annotation for p in read_part("addons", "hard_negatives").parameters}
        for name, known in (("kinds", KINDS), ("styles", STYLES)):
            (listed, _) = get_args(found[name])
            assert get_args(get_args(listed)[0]) == known

    def test_a_missing_file_is_said_before_there_is_a_run_folder(self, tmp_path: Path) -> None:
        addon = {"kind": "hard_negatives", "forbid_file": str(tmp_path / "none.txt")}
        with pytest.raises(ConfigError, match="forbid_file"):
            preflight(load_config(write_run(tmp_path, addons=[addon])))
        assert not (tmp_path / "runs").exists()

    @pytest.mark.parametrize("form", [{"image_negatives": True}, {"triplet": True}])
    def test_a_batch_without_negative_images(self, form: dict[str, Any]) -> None:
        batch = Batch({"image": torch.zeros(1)}, {}, torch.arange(1))
        with pytest.raises(ConfigError, match="data.image_members"):
            HardNegatives(source="json", **form).transform_batch(batch)


def letters(texts: list[str]) -> torch.Tensor:
    """A tokenizer for any text."""
    return torch.tensor([list(text.encode()[:60].ljust(60)) for text in texts])


def loader_of(
    tmp_path: Path,
    shards: list[str],
    addon: HardNegatives,
    tokenizer: Callable[[list[str]], torch.Tensor] = number_tokenizer,
    **data: Any,
) -> IndexedLoader:
    """A loader over `shards` of one rank."""
    path = write_run(tmp_path, data={"train": shards, "streams": 2, **data})
    parts = SimpleNamespace(image_size=(8, 8), tokenizer=tokenizer)
    loader = build_loader(load_config(path), parts, [addon], World())  # type: ignore[arg-type]
    assert isinstance(loader, IndexedLoader)
    return loader


def take(loader: IndexedLoader, steps: int) -> list[Batch]:
    return list(itertools.islice(iter(loader), steps))


def same(left: list[Batch], right: list[Batch]) -> bool:
    """Whether two lists of batches are equal, bit for bit."""
    flat = [
        [{**b.images, **b.texts, "ids": b.ids, "mask": b.masks["negative"]} for b in batches]
        for batches in (left, right)
    ]
    return len(left) == len(right) and all(
        a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a) for a, b in zip(*flat)
    )


class TestLoader:
    def test_negatives_belong_to_their_captions(self, tmp_path: Path, shards: list[str]) -> None:
        for batch in take(loader_of(tmp_path, shards, HardNegatives(source="json", count=2)), 3):
            captions, negatives = batch.texts["text"][..., 0], batch.texts["negative"][..., 0]
            assert ((negatives - 1000) // 10 == captions).all() and batch.masks["negative"].all()
            assert negatives.shape == (16, 2) and (negatives[:, 0] != negatives[:, 1]).all()

    @pytest.mark.filterwarnings("ignore:This DataLoader will create")
    @pytest.mark.parametrize("workers", [0, pytest.param(3, marks=pytest.mark.slow)])
    def test_any_number_of_workers_from_any_step(
        self, tmp_path: Path, shards: list[str], workers: int
    ) -> None:
        whole = take(loader_of(tmp_path, shards, HardNegatives(source="json"), workers=0), 7)
        resumed = loader_of(tmp_path, shards, HardNegatives(source="json"), workers=workers)
        resumed.load_state_dict({**resumed.state_dict(), "step": 2})
        assert same(take(resumed, 5), whole[2:])
        assert not same(whole[:3], whole[3:6]), "another epoch draws others"

    def test_no_other_draw_changes(self, tmp_path: Path, shards: list[str]) -> None:
        data: dict[str, Any] = {"flip": 0.5, "views": {"small": {"size": 4}}}
        with_it = take(loader_of(tmp_path, shards, HardNegatives(source="json"), **data), 3)
        off = HardNegatives(source="json", weight=0.0)
        for a, b in zip(with_it, take(loader_of(tmp_path, shards, off, **data), 3)):
            assert all(torch.equal(a.images[n], b.images[n]) for n in ("image", "small"))
            assert torch.equal(a.texts["text"], b.texts["text"]) and set(b.texts) == {"text"}

    def test_a_triplet_without_its_caption_is_replaced(self, tmp_path: Path) -> None:
        shards = write_hard_shards(tmp_path / "s", without=(3, 30))
        addon = HardNegatives(source="json", triplet=True)
        members = {"image_members": {"negative_image": ["neg.png"]}}
        loader = loader_of(tmp_path, shards, addon, max_bad_fraction=0.1, **members)
        batches = take(loader, 3)
        ids = torch.cat([b.ids for b in batches])
        assert not set(ids.tolist()) & {3, 30} and loader.bad.causes == {"no_negative": 2}
        numbers = torch.cat([b.texts["negative"][:, 0, 0] for b in batches])
        assert (numbers == 1000 + 10 * ids).all(), "the first of the list"
        assert batches[0].images["negative_image"].shape == (16, 3, 8, 8)

    def test_goes_to_workers(self) -> None:
        addon = pickle.loads(pickle.dumps(HardNegatives(source="json", count=2)))
        sample = Sample({}, {"text": ["a"]}, meta={"negatives": ["b"]})
        assert addon.sample(sample, np.random.default_rng(0)).masks["negative"] == [True, False]


def negatives_of(caption: str, meta: dict[str, Any] | None = None, **settings: Any) -> list[str]:
    """Valid negatives of a caption over many draws."""
    addon, found = HardNegatives(**settings), set()
    for seed in range(25):
        sample = Sample({}, {"text": [caption]}, meta=meta or {})
        sample = addon.sample(sample, np.random.default_rng(seed))
        texts, valid = sample.texts["negative"], sample.masks["negative"]
        assert len(texts) == len(valid) == addon.count and all(texts)
        assert all(text == caption for text, mask in zip(texts, valid) if not mask)
        found |= {text for text, mask in zip(texts, valid) if mask}
    return sorted(found)


class TestRules:
    caption = "a red circle and a blue square"

    def test_kinds_and_styles_choose(self) -> None:
        colors = negatives_of(self.caption, count=2, kinds=["color"], styles=["replace"])
        assert colors and all("circle" in t and "square" in t for t in colors)
        swapped = negatives_of(self.caption, styles=["swap"], kinds=["color"])
        assert swapped == ["a blue circle and a red square"]

    def test_no_caption_is_valid_negative_of_itself(self) -> None:
        found = negatives_of(self.caption, {"captions": ["A blue circle and a red square."]})
        assert found and "a blue circle and a red square" not in found
        assert negatives_of("xyzzy") == []

    def test_forbidden_combinations(self, tmp_path: Path) -> None:
        (tmp_path / "demo.json").write_text('{"held_out": ["blue circle"]}')
        forbid: dict[str, Any] = {"forbid_file": str(tmp_path / "demo.json"), "forbid": ("red s",)}
        meta = {"negatives": ["a blue circle and a red square", "a red s"]}
        free = negatives_of(self.caption, meta, count=4, source="both")
        kept = negatives_of(self.caption, meta, count=4, source="both", **forbid)
        assert set(meta["negatives"]) <= set(free)
        assert kept and not any("blue circle" in t or t == "a red s" for t in kept)
        assert negatives_of(self.caption, meta, source="json", **forbid) == []

    @pytest.mark.filterwarnings("ignore:This DataLoader will create")
    @pytest.mark.parametrize("workers", [0, pytest.param(3, marks=pytest.mark.slow)])
    def test_the_same_from_any_worker(self, tmp_path: Path, workers: int) -> None:
        members: list[tuple[str, bytes]] = []
        for i in range(32):
            caption = f"{i % 7 + 2} red dogs left of a blue circle, number {i}"
            members += [(f"{i}.png", noise_bytes(i)), (f"{i}.txt", caption.encode())]
        shards = [str(write_tar(tmp_path / "0.tar", members))]

        def tokens(w: int, first: int) -> list[Batch]:
            addon = HardNegatives(count=3, forbid=("blue dogs",))
            loader = loader_of(tmp_path, shards, addon, letters, workers=w)
            loader.load_state_dict({**loader.state_dict(), "step": first})
            return take(loader, 4 - first)

        whole = tokens(0, 0)
        assert whole[0].masks["negative"].float().mean() > 0.9
        assert same(tokens(workers, 1), whole[1:])


class TestMinedNeighbours:
    """data.hard_batches places neighbours in one batch; the add-on rides along."""

    @pytest.fixture
    def config(self, tmp_path: Path, shards: list[str]) -> tuple[str, list[str]]:
        partner = partner_of(np.arange(NUM_SAMPLES))[:, None]
        np.save(tmp_path / "mined.npy", partner)
        hard = {"neighbours": str(tmp_path / "mined.npy"), "group": 2, "batches": 3}
        data = {"train": shards, "streams": 2, "workers": 0, "hard_batches": hard}
        return str(write_run(tmp_path, data=data)), []

    def test_meet_on_two_ranks_and_after_a_resume(
        self,
        config: tuple[str, list[str]],
        ranks,  # type: ignore[no-untyped-def]
    ) -> None:
        whole = ranks(2).run(mined_batches, *config, 0, 6)
        for first, second in zip(*whole):
            ids = first[0]
            assert ids == second[0] and len(set(ids)) == 16
            assert set(map(partner_of, ids)) == set(ids), "each stands with its neighbour"
            negatives = torch.cat([first[1], second[1]])[:, 0, 0]
            assert ((negatives - 1000) // 10).tolist() == ids and first[2].all()
        for rank, tail in enumerate(ranks(2).run(mined_batches, *config, 4, 6)):
            for (ids, texts, masks), (ids2, texts2, masks2) in zip(whole[rank][4:], tail):
                assert ids == ids2 and torch.equal(texts, texts2) and torch.equal(masks, masks2)

    def test_do_not_meet_without(
        self,
        config: tuple[str, list[str]],
        ranks,  # type: ignore[no-untyped-def]
    ) -> None:
        path, _ = config
        apart = ranks(2).run(mined_batches, path, ["data.hard_batches=null"], 0, 3)[0]
        assert any(set(map(partner_of, ids)) != set(ids) for ids, _, _ in apart)


def trained(path: Path, name: str, *overrides: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    """(losses, weights) of a run."""
    config = load_config(path, [f"run.name={name}", "log.every=1", *overrides])
    run = build_run(config, World())
    try:
        assert fit(run) == "done"
    finally:
        run.log.close()
    lines = [json.loads(x) for x in (run.folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    return losses, CheckpointReader(find_checkpoint(run.folder)).towers_state()


def test_weight_zero_leaves_a_run_bit_identical(tmp_path: Path, shards: list[str]) -> None:
    path = write_run(
        tmp_path,
        data={"train": shards, "streams": 2, "workers": 0},
        train={"total_steps": 6},
        eval={"tasks": []},
    )
    plain_losses, plain = trained(path, "plain")
    assert len(plain_losses) == 6
    members = 'data.image_members={"negative_image": ["neg.png"]}'
    off = {
        "texts": [{**JSON_ONLY, "weight": 0.0, "count": 3}],
        "images": [{**JSON_ONLY, "weight": 0.0, "image_negatives": True}],
    }
    for name, addons in off.items():
        more = [members] if name == "images" else []
        losses, weights = trained(path, name, f"addons={json.dumps(addons)}", *more)
        assert losses == plain_losses
        assert all(torch.equal(weights[n], t) for n, t in plain.items())
    losses, _ = trained(path, "half", f"addons={json.dumps([{**JSON_ONLY, 'weight': 0.5}])}")
    assert losses[0] > plain_losses[0], "a negative can only cost"


def test_tags_that_no_negative_has_are_told(
    tmp_path: Path, shards: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"train": shards, "streams": 2, "workers": 0}
    path = write_run(tmp_path, data=data, train={"total_steps": 2}, eval={"tasks": []})
    said = "addons.hard_negatives: no caption of step 1 has a negative"
    for name, more, share, times in (("all", {}, 1.0, 0), ("typo", {"tags": ["colour"]}, 0.0, 1)):
        trained(path, name, f"addons={json.dumps([{**JSON_ONLY, **more}])}")
        lines = (tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["train/negatives"] for line in lines] == [share, share]
        assert capsys.readouterr().err.count(said) == times


def test_the_share_of_valid_negatives_is_that_of_all_ranks(ranks) -> None:  # type: ignore[no-untyped-def]
    whole = valid_share(World())
    assert whole == pytest.approx(tiny_batch(16, negatives=3).masks["negative"].float().mean())
    assert ranks(2).run(valid_share) == [whole, whole]
