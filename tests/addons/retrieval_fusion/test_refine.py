"""Refinement at inference: the right cell of the memory, blocks, sides, names, other memories."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clipkit.addons.retrieval_fusion import refine
from clipkit.addons.retrieval_fusion.head import FusionHeads, FusionSettings
from clipkit.addons.retrieval_fusion.refine import Fusion, Prototype
from clipkit.errors import CheckpointError
from tests.addons.retrieval_fusion.memories import PlainMemory, unit

D = 16


def heads(trained: bool = True, **settings: object) -> FusionHeads:
    torch.manual_seed(1)
    found = FusionHeads(FusionSettings(D, **{"k": 3, "num_heads": 4, **settings}))  # type: ignore[arg-type]
    if trained:
        for p in found.parameters():
            nn.init.normal_(p, std=0.2)
    return found.eval()


@pytest.mark.parametrize("search", ["uni", "cross"])
@pytest.mark.parametrize("fusion", ["uni", "cross"])
def test_the_four_cells(search: str, fusion: str) -> None:
    memory, own = PlainMemory(), heads(search=search, fusion=fusion)
    query = unit(7, D, seed=5)
    other = {"image": "text", "text": "image"}
    for side in ("image", "text"):
        searched = side if search == "uni" else other[side]
        fused = side if fusion == "uni" else other[side]
        rows = (query @ memory.sides[searched].T).topk(3).indices
        mask = torch.ones(7, 3, dtype=torch.bool)
        wanted = own.layer(side)(query, memory.sides[fused][rows], mask)
        refined = getattr(Fusion(own, memory), side)(query)
        torch.testing.assert_close(refined, wanted, rtol=0, atol=1e-6)
        assert not refined.requires_grad
        mean = F.normalize(memory.sides[fused][rows].mean(dim=1), dim=-1)
        plain = Prototype(memory, 3, sides="both", search=search, fusion=fusion)  # type: ignore[arg-type]
        torch.testing.assert_close(getattr(plain, side)(query), mean, rtol=0, atol=1e-6)


def test_new_heads_leave_every_bit() -> None:
    query = unit(7, D, seed=5)
    fusion = Fusion(heads(trained=False), PlainMemory())
    assert torch.equal(fusion.image(query), query) and torch.equal(fusion.text(query), query)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    query = unit(11, D, seed=5)
    fusion = Fusion(heads(), PlainMemory())
    whole = fusion.text(query)
    monkeypatch.setattr(refine, "_BLOCK", 3)
    torch.testing.assert_close(fusion.text(query), whole, rtol=0, atol=1e-6)
    one_by_one = torch.cat([fusion.text(row[None]) for row in query])  # prompts know nothing
    torch.testing.assert_close(one_by_one, whole, rtol=0, atol=1e-6)
    assert fusion.text(query[:0]).shape == (0, D)


def test_sides() -> None:
    query, memory = unit(4, D, seed=5), PlainMemory()
    for sides, changed in (
        ("both", (True, True)),
        ("image", (True, False)),
        ("text", (False, True)),
    ):
        for refinement in (
            Fusion(heads(), memory, sides=sides),
            Prototype(memory, 3, sides=sides),  # type: ignore[arg-type]
        ):
            same = (
                torch.equal(refinement.image(query), query),
                torch.equal(refinement.text(query), query),
            )
            assert same == tuple(not c for c in changed)
    assert torch.equal(Prototype(memory).image(query), query)  # by default texts only


def test_near_duplicates_are_passed_over_and_none_left_is_no_retrieval() -> None:
    memory = PlainMemory()
    query = memory.sides["text"][:5]  # in the memory themselves
    strict = Fusion(heads(), memory, max_similarity=0.999)
    free = Fusion(heads(), memory)
    assert bool(((strict.text(query) - free.text(query)).norm(dim=-1) > 1e-3).all())
    _, rows = memory.search(query, "text", 3, max_similarity=0.999)
    assert not (rows == torch.arange(5)[:, None]).any()
    for nothing in (
        Fusion(heads(), memory, max_similarity=-1.0),
        Prototype(memory, max_similarity=-1.0),
    ):
        assert torch.equal(nothing.text(query), query)


def test_a_row_without_a_feature_is_no_neighbour() -> None:
    memory, query = PlainMemory(), unit(6, D, seed=5)
    memory.sides["text"][::2] = 0  # images without a caption
    own = heads()
    refined = Fusion(own, memory, sides="image").image(query)
    rows = (query @ memory.sides["image"].T).topk(3).indices
    values = memory.sides["text"][rows]
    torch.testing.assert_close(refined, own.image(query, values, rows % 2 == 1), rtol=0, atol=1e-6)


def test_another_memory_without_training() -> None:
    query, own = unit(6, D, seed=5), heads()
    small, large = PlainMemory(20), PlainMemory(60, seed=9)
    first, second = Fusion(own, small), Fusion(own, large)
    assert not torch.equal(first.text(query), second.text(query))
    assert first.name != second.name and large.name in second.name
    with pytest.raises(CheckpointError, match="a memory of 8 dimensions, the features have 16"):
        Fusion(own, PlainMemory(20, dim=8))


def test_the_name_tells_all_that_matters() -> None:
    memory = PlainMemory()
    kinds = [
        Fusion(heads(), memory),
        Fusion(heads(trained=False), memory),
        Fusion(heads(), memory, sides="text"),
        Fusion(heads(), memory, max_similarity=0.9),
        Fusion(heads(k=4), memory),
        Fusion(heads(search="cross"), memory),
        Fusion(heads(fusion="uni"), memory),
        Fusion(heads(), PlainMemory(50)),
        Prototype(memory),
        Prototype(memory, sides="both"),
        Prototype(memory, 4),
    ]
    assert len({kind.name for kind in kinds}) == len(kinds)
    assert Fusion(heads(), memory).name == kinds[0].name
