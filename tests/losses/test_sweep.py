"""The streaming kernel over ranks: equal to one process, what it sends, and faults that must show.

Losses and scalars are averaged over ranks; see tests/losses/problems.py.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from clipkit.contracts import Tiling
from clipkit.dist import collectives
from clipkit.dist.group import World
from clipkit.losses import strip, sweep, tiled
from clipkit.losses.infonce import InfoNCELoss
from clipkit.losses.siglip import SigLIPLoss
from clipkit.losses.tiled import loss_and_feature_grads
from tests.losses.problems import (
    ALONE,
    LOSSES,
    Answer,
    Cell,
    cell_problem,
    leaves_of,
    over_ranks,
    rows_of,
    run_cell,
    value_of,
    worst,
)

KINDS = list(LOSSES)
FLAGS = [False, True]


@functools.cache
def one_process(cell: Cell) -> Answer:
    """A cell's answer without ranks."""
    return run_cell(ALONE, cell)


def right_answer(cell: Cell) -> Answer:
    """What ranks must find; computed once for all their plans."""
    return one_process(cell._replace(fault="", tiling=Tiling(4)))


def run_cells(world: World, cells: list[Cell]) -> list[Answer]:
    """Answers of several cells."""
    return [run_cell(world, c) for c in cells]


def check_cells(cells: list[Cell], pool: Any, limit: float = 1e-9) -> None:
    """Every cell's answer over ranks equals that of one process."""
    by_rank = pool.run(run_cells, cells)
    for cell, *parts in zip(cells, *by_rank):
        found, right = over_ranks(parts), right_answer(cell)
        assert found.loss.item() == pytest.approx(right.loss.item(), rel=limit), cell
        assert worst(found, right) <= limit, cell


def grid(kind: str, plan: str, gather_size: int | None) -> list[Cell]:
    """With and without columns and duplicates."""
    tiling = Tiling(4, plan=plan, gather_size=gather_size)
    return [Cell(kind, c, d, tiling) for c, d in itertools.product(FLAGS, FLAGS)]


@pytest.mark.parametrize("gather_size", [None, 3])
@pytest.mark.parametrize("plan", ["rs", "lse"])
@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_equal_one_process(kind: str, plan: str, gather_size: int | None, ranks) -> None:  # type: ignore[no-untyped-def]
    check_cells(grid(kind, plan, gather_size), ranks(2))


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 4])
@pytest.mark.parametrize("plan", ["rs", "lse"])
@pytest.mark.parametrize("kind", KINDS)
def test_other_worlds_equal_one_process(kind: str, plan: str, world_size: int, ranks) -> None:  # type: ignore[no-untyped-def]
    cells = [c for size in (None, 1, 3) for c in grid(kind, plan, size)]
    check_cells(cells, ranks(world_size))


def run_without_keeping(world: World, cells: list[Cell]) -> list[Answer]:
    """As run_cells, products computed again, gathers of one row of each rank at a time."""
    with (
        mock.patch.object(tiled, "keeps_products", lambda num_pairs: False),
        mock.patch.object(sweep, "_GATHER_BYTES", 1),
    ):
        return run_cells(world, cells)


@pytest.mark.parametrize("plan", ["rs", "lse"])
def test_memory_settings_change_nothing(plan: str, ranks) -> None:  # type: ignore[no-untyped-def]
    cells = [c for kind in ("infonce", "hcl", "siglip") for c in grid(kind, plan, None)]
    by_rank = ranks(2).run(run_without_keeping, cells)
    for cell, *parts in zip(cells, *by_rank):
        assert worst(over_ranks(parts), right_answer(cell)) <= 1e-9, cell


@pytest.mark.parametrize("gather_size", [None, 3])
@pytest.mark.parametrize("plan", ["rs", "lse"])
def test_terms_lost_on_one_rank_are_summed_again_on_all(  # type: ignore[no-untyped-def]
    plan: str, gather_size: int | None, ranks
) -> None:
    tiling = Tiling(4, plan=plan, gather_size=gather_size)
    kinds = ("infonce", "llave", "dcl", "hcl")
    check_cells(
        [Cell(k, False, d, tiling, dead=True) for k in kinds for d in FLAGS], ranks(2), 3e-6
    )


def links_of(world: World, cell: Cell) -> tuple[bool, bool]:
    """Whether this rank's own rows lost terms, and whether any rank went on with online sums."""
    seen, made = [], []
    lost, online = strip.Softmax.lost, sweep.OnlineSoftmax

    def watched(self: strip.Softmax, sums: Tensor, counts: Tensor) -> Tensor:
        seen.append(bool(lost(self, sums, counts)))
        return lost(self, sums, counts)

    with (
        mock.patch.object(strip.Softmax, "lost", watched),
        mock.patch.object(sweep.OnlineSoftmax, "begin", _noted(online.begin, made)),
    ):
        run_cell(world, cell)
    return seen[0], bool(made)


def _noted(method: Any, calls: list[int]) -> Any:
    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return method(self, *args, **kwargs)

    return noted


def test_the_dead_rows_are_one_ranks_only(ranks) -> None:  # type: ignore[no-untyped-def]
    found = ranks(2).run(links_of, Cell(columns=False, mask_duplicates=False, dead=True))
    assert found == [(True, True), (False, True)]


def count_features(world: World, cell: Cell) -> tuple[dict[str, int], dict[str, int]]:
    """Feature sized calls of each collective: in forward, and in forward and backward."""
    counts: Counter[str] = Counter()
    p = leaves_of(rows_of(cell_problem(cell), world))
    dim = p.image.shape[1]

    def counted(name: str, call: Any, x: Tensor, *args: Any) -> Tensor:
        counts[name] += x.dim() == 2 and x.shape[-1] == dim and x.shape[0] > 1
        return call(x, *args)

    with mock.patch.multiple(
        collectives,
        **{
            n: partial(counted, n, getattr(collectives, n))
            for n in ("all_gather", "reduce_scatter")
        },
    ):
        loss = value_of(cell.loss, p, cell.mask_duplicates, cell.tiling, world)
        forward = dict(counts)
        loss.backward()
    return forward, dict(counts)


RS = ({"all_gather": 1}, {"all_gather": 1, "reduce_scatter": 1})
LSE = ({"all_gather": 1}, {"all_gather": 2})


@pytest.mark.parametrize(
    "tiling, wanted",
    [
        (Tiling(plan="rs"), RS),
        (Tiling(plan="lse"), LSE),
        (Tiling(num_nodes=1), RS),
        (Tiling(num_nodes=2), LSE),
        (Tiling(plan="rs", num_nodes=2), RS),
        (Tiling(plan="lse", num_nodes=1), LSE),
    ],
)
@pytest.mark.parametrize("kind", ["infonce", "siglip", "hcl"])
def test_features_sent(kind: str, tiling: Tiling, wanted: Any, ranks) -> None:  # type: ignore[no-untyped-def]
    for found in ranks(2).run(count_features, Cell(kind, False, True, tiling)):
        assert found == wanted


@pytest.mark.parametrize("plan, wanted", [("rs", (2, 2)), ("lse", (3, 0))])
def test_features_sent_with_columns(plan: str, wanted: tuple[int, int], ranks) -> None:  # type: ignore[no-untyped-def]
    for _, found in ranks(2).run(count_features, Cell(tiling=Tiling(plan=plan))):
        assert (found["all_gather"], found.get("reduce_scatter", 0)) == wanted


def test_chunks_are_gathered_twice(ranks) -> None:  # type: ignore[no-untyped-def]
    cell = Cell(columns=False, tiling=Tiling(plan="rs", gather_size=3))
    for _, found in ranks(2).run(count_features, cell):  # 8 rows: 3 + 3 + 2
        assert found == {"all_gather": 6, "reduce_scatter": 3}


def error_of(cell: Cell, pool: Any) -> float:
    """Of a cell's gradients."""
    return worst(over_ranks(pool.run(run_cell, cell)), right_answer(cell))


@pytest.mark.parametrize(
    "fault, plan",
    [
        ("scatter", "rs"),
        ("rank", "rs"),
        ("rank", "lse"),
        ("column_sums", "rs"),
        ("column_sums", "lse"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_seeded_faults(kind: str, fault: str, plan: str, ranks) -> None:  # type: ignore[no-untyped-def]
    if kind == "siglip" and fault == "column_sums":
        pytest.skip("a sigmoid loss has no column sums")
    cell = Cell(kind, tiling=Tiling(4, plan=plan))
    assert error_of(cell._replace(fault=fault), ranks(2)) > 1e-3


def without_autograd(world: World, kind: str, plan: str) -> tuple[Answer, Answer]:
    """loss_and_feature_grads, and autograd."""
    cell = Cell(kind, False, False, Tiling(4, plan=plan))
    p = rows_of(cell_problem(cell), world)
    loss = {"infonce": InfoNCELoss, "siglip": SigLIPLoss}[kind]
    tiling = cell.tiling._replace(rank=world.rank, world_size=world.world_size)
    found = loss_and_feature_grads(
        p.image,
        p.text,
        p.scale,
        loss.of_negatives,
        logit_bias=p.bias,
        sigmoid=kind == "siglip",
        tiling=tiling,
    )
    bias = torch.zeros(()) if found.logit_bias is None else found.logit_bias
    grads = {"image": found.image, "text": found.text, "scale": found.logit_scale, "bias": bias}
    return Answer(found.loss, grads), run_cell(world, cell)


@pytest.mark.parametrize("plan", ["rs", "lse"])
@pytest.mark.parametrize("kind", ["infonce", "siglip"])
def test_without_autograd(kind: str, plan: str, ranks) -> None:  # type: ignore[no-untyped-def]
    for found, right in ranks(2).run(without_autograd, kind, plan):
        assert found.loss.item() == right.loss.item()
        assert worst(found, right) <= 1e-14
