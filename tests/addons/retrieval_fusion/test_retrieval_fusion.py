"""The add-on's hooks one by one: checks at the start, extras, pairs, state, refinement."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from clipkit.addons import retrieval_fusion
from clipkit.addons.retrieval_fusion import RetrievalFusion
from clipkit.contracts import Pair
from clipkit.data.samples import Sample
from clipkit.errors import CheckpointError, ConfigError, DataError
from clipkit.towers.build import build_towers
from clipkit.towers.identity import weights_hash
from tests.addons.retrieval_fusion.memories import PlainMemory, unit, write_neighbours
from tests.tiny_model import MODEL_CFG

COUNTS = [5, 3]


class Parts:
    """A source of these of the shards."""

    def __init__(self, numbers: list[int]) -> None:
        self.numbers, self.counts = numbers, np.array([COUNTS[n] for n in numbers])

    def part_name(self, part: int) -> str:
        return f"/there/{self.numbers[part]}.tar"

    def part_digest(self, part: int) -> str:
        return ""


@pytest.fixture(scope="module")
def towers() -> Any:
    torch.manual_seed(0)
    return build_towers(MODEL_CFG)


@pytest.fixture
def memory(towers: Any, monkeypatch: pytest.MonkeyPatch) -> PlainMemory:
    """Opened under any path by who has the towers' weights."""
    found = PlainMemory(weights_hash=weights_hash(towers))

    def open_memory(path: str, wanted: str | None = None) -> PlainMemory:
        if wanted not in (None, found.weights_hash):
            raise CheckpointError(f"{path}: was built with other weights")
        return found

    monkeypatch.setattr(retrieval_fusion, "open_memory", open_memory)
    return found


@pytest.fixture
def addon(towers: Any, memory: PlainMemory, tmp_path: Path) -> RetrievalFusion:
    found = RetrievalFusion(
        memory="m", neighbours=str(write_neighbours(tmp_path / "n", memory, COUNTS)), k=3
    )
    found.prepare(towers)
    return found


def made(**settings: Any) -> RetrievalFusion:
    return RetrievalFusion(**{"memory": "m", "neighbours": "n", **settings})


def test_the_memory_must_be_of_the_first_weights(
    towers: Any, memory: PlainMemory, tmp_path: Path
) -> None:
    memory.weights_hash = "another"
    own = made(neighbours=str(write_neighbours(tmp_path / "n", memory, COUNTS)), k=3)
    with pytest.raises(CheckpointError, match=r"retrieval_fusion.memory: m: .*model.pretrained"):
        own.prepare(towers)


def test_neighbours_must_be_of_the_memory_and_of_the_shards(
    towers: Any, addon: RetrievalFusion, memory: PlainMemory
) -> None:
    addon.check_data([Parts([0, 1])])  # type: ignore[list-item]
    addon.check_data([Parts([0]), Parts([1])])  # type: ignore[list-item]  # numbered through
    with pytest.raises(DataError, match="shard 0 is 0.tar with 5 samples, in the run 1.tar"):
        addon.check_data([Parts([1, 0])])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="data.mode=indexed"):
        addon.check_data([])
    memory.name = "grown"
    with pytest.raises(DataError, match="of another memory"):
        addon.prepare(towers)


def test_a_sketch_of_the_towers_needs_no_files() -> None:
    with torch.device("meta"):
        own, towers = made(memory="nowhere"), build_towers(MODEL_CFG)
        own.prepare(towers)
        assert own.heads()["fusion"].image.query.weight.is_meta
    assert own.settings.dim == 16


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"query_dropout": 1.0}, "query_dropout: 1.0"), ({"num_heads": 5}, "num_heads: 5")],
)
def test_settings(settings: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        made(**settings).prepare(build_towers(MODEL_CFG))


@pytest.mark.parametrize("fusion", ["cross", "uni"])
def test_neighbours_of_a_sample_become_extras(
    towers: Any, memory: PlainMemory, tmp_path: Path, fusion: str
) -> None:
    memory.sides["text"][7] = 0  # an image without a caption
    folder = write_neighbours(tmp_path / "n", memory, COUNTS)
    table = np.load(folder / "image.npy")
    table[4, 0] = 7
    np.save(folder / "image.npy", table)
    own = made(neighbours=str(folder), k=3, fusion=fusion)
    own.prepare(towers)
    own = pickle.loads(pickle.dumps(own))  # as a loader's worker gets it
    assert own.memory is memory  # opened there, not sent
    for sample_id in range(8):
        sample = own.sample(Sample({}, {"text": ["a"]}, id=sample_id), np.random.default_rng())
        for side, other in (("image", "text"), ("text", "image")):
            rows = np.load(folder / f"{side}.npy")[sample_id, :3]
            values = memory.sides[other if fusion == "cross" else side][rows]
            got, mask = (sample.extras[f"{side}_neighbours{x}"] for x in ("", "_mask"))
            there = torch.from_numpy(rows >= 0)
            if side == "image" and fusion == "cross":
                there &= torch.from_numpy(rows != 7)
            assert mask.equal(there) and got.shape == (3, 16) and got.dtype == torch.float16
            torch.testing.assert_close(got[mask].float(), values[mask], rtol=0, atol=1e-3)
            assert not got[~mask].any()


def test_pairs() -> None:
    v, t, v_, t_ = "image", "text", "image@fused", "text@fused"
    assert made().pairs([Pair()]) == [Pair(v_, t_), Pair(v_, t), Pair(v, t_)]
    assert made(freeze_towers=False).pairs([Pair()]) == [
        Pair(v_, t_),
        Pair(v_, t),
        Pair(v, t_),
        Pair(v, t),
    ]
    columns = ("negative",)
    negclip = [Pair(weight=0.25), Pair(columns=columns, weight=0.75)]
    assert made(freeze_towers=False).pairs(negclip) == [
        Pair(v_, t_),
        Pair(v_, t, weight=0.25),
        Pair(v, t_),
        Pair(v, t, weight=0.25),
        Pair(v_, t, columns, 0.75),
        Pair(v, t, columns, 0.75),
    ]
    images = Pair(t, v, ("negative_image",))
    assert made().pairs([images]) == [
        Pair(t_, v_),
        Pair(t_, v, ("negative_image",)),
        Pair(t, v_),
    ]
    assert made().pairs([Pair("small", t)]) == [Pair("small", t_)]


def test_columns_stay_on_unrefined_texts_whoever_comes_first() -> None:
    from clipkit.addons.hard_negatives import PART

    for freeze in (True, False):
        fusion, negatives = made(freeze_towers=freeze), PART(source="json")
        before = fusion.pairs(negatives.pairs([Pair()]))
        after = negatives.pairs(fusion.pairs([Pair()]))
        assert set(before) == set(after) and len(before) == len(after)
        assert {(p.image, p.text) for p in after if p.columns} == (
            {("image@fused", "text")} | (set() if freeze else {("image", "text")})
        )


def test_state_is_what_rebuilds_the_layers(addon: RetrievalFusion) -> None:
    state = addon.state_dict()
    assert state == {
        "kind": "retrieval_fusion",
        "dim": 16,
        "k": 3,
        "num_heads": 8,
        "mlp_ratio": 4.0,
        "search": "uni",
        "fusion": "cross",
    }
    addon.load_state_dict({**state, "k": 5})  # another number of neighbours is no other layer
    for name, value in (("num_heads", 4), ("search", "cross"), ("kind", "ema")):
        with pytest.raises(CheckpointError, match=f"retrieval_fusion.{name} is"):
            addon.load_state_dict({**state, name: value})


def test_refinement_has_the_weights_of_now(addon: RetrievalFusion, memory: PlainMemory) -> None:
    own, query = addon.heads()["fusion"], unit(5, 16, seed=3)
    first = addon.refinement()
    nn.init.normal_(own.image.attention_out.weight)
    second = addon.refinement()
    assert first is not None and second is not None and first.name != second.name
    assert torch.equal(first.image(query), query) and not torch.equal(second.image(query), query)
    assert torch.equal(second.text(query), query)  # the other layer is still new
    own.train()
    assert not second.heads.training and second.memory is memory
    addon.max_similarity = 0.5
    addon.refinement().image(query)
    assert memory.asked[-1] == ("image", 3, 0.5)
