"""Ranks against brute force in fp64; nothing but the features decides; no prior from ties."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from clipkit.bench.measure import extra_mb
from clipkit.errors import DataError
from clipkit.retrieval import ranks as module
from clipkit.retrieval.ranks import rank_sides, ranks, recall_at
from clipkit.retrieval.scores import error_bound
from tests.retrieval import cells
from tests.retrieval.cells import problem, unit

DIAGONAL = torch.arange(50)[:, None].expand(50, 2)


def one_by_one(queries, targets, pairs):
    """(ranks, tied) of the queries, by loops over the definition."""
    positive = {tuple(pair) for pair in pairs.tolist()}
    found, tied = [], []
    for i, query in enumerate(queries.double()):
        terms = [(query * t).sort().values.sum() for t in targets.double()]
        scores = [float(s.float()) for s in terms]
        own = [s for j, s in enumerate(scores) if (i, j) in positive]
        others = [s for j, s in enumerate(scores) if (i, j) not in positive]
        found.append(sum(s >= max(own) for s in others) if own else len(targets))
        tied.append(bool(own) and max(own) in others)
    return found, tied


def check(queries, targets, pairs, **options):
    forth, back = rank_sides(queries, targets, pairs, **options)
    assert (forth.ranks.tolist(), forth.tied.tolist()) == one_by_one(queries, targets, pairs)
    turned = one_by_one(targets, queries, pairs.flip(1))
    assert (back.ranks.tolist(), back.tied.tolist()) == turned


@pytest.mark.parametrize("block", [1, 7, 8, 16, 1024])
@pytest.mark.parametrize("seed", range(3))
def test_against_brute_force_with_many_positives(seed, block):
    check(*problem(seed), block=block)


@pytest.mark.parametrize("block", [5, 1024])
@pytest.mark.parametrize("seed", range(3))
def test_small_integers_many_ties(seed, block):
    g = torch.Generator().manual_seed(seed)
    queries = torch.randint(-2, 3, (23, 4), generator=g).float()
    targets = torch.randint(-2, 3, (31, 4), generator=g).float()
    check(queries, targets, (torch.rand(23, 31, generator=g) < 0.15).nonzero(), block=block)


@pytest.mark.parametrize("dense", [1, 10**9])
@pytest.mark.parametrize("spread", [0.0, 1e-8, 1e-7, 1e-6])
def test_nearly_equal_features_are_told_apart_by_pairs_and_by_whole_tiles(
    spread, dense, monkeypatch
):
    """Scores differ by less than an fp32 product can tell."""
    monkeypatch.setattr(module, "_DENSE", dense)  # 1: one by one; 10^9: whole tiles
    centre = unit(1, 48, 9)
    queries = centre + spread * unit(30, 48, 0)
    targets = 1000 * (centre + spread * unit(30, 48, 1))
    check(queries, targets, DIAGONAL[:30], block=16)


def test_what_is_settled_lies_farther_off_than_products_err():
    queries, targets, pairs = problem(0)
    queries, targets = 3 * queries, 5 * targets
    for side in module._sides(queries, targets, pairs, both=True):
        some = side.best.isfinite()
        least = 15 * error_bound(queries.shape[1], torch.float32)
        assert (side.high - side.best)[some].min() > 0.99 * least
        assert (side.best - side.low)[some].min() > 0.99 * least


def test_settled_entries_are_not_scored_again(monkeypatch):
    """Where scores lie apart, products alone decide; else the speed would be gone."""
    asked = []
    score = module.pair_scores

    def counted(queries, targets, rows, columns):
        asked.append(len(rows))
        return score(queries, targets, rows, columns)

    monkeypatch.setattr(module, "pair_scores", counted)
    monkeypatch.setattr(module, "tile_scores", None)
    queries = unit(50, 16, 0)
    ranks(queries, F.normalize(queries + 0.1 * unit(50, 16, 1), dim=1), DIAGONAL)
    assert asked == [50]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_features_of_other_types(dtype):
    queries, targets, pairs = problem(4)
    check(queries.to(dtype), targets.to(dtype), pairs, block=16)


def test_rows_of_different_lengths():
    queries, targets, pairs = problem(5)
    queries *= torch.logspace(-4, 4, 37)[:, None]
    targets *= torch.logspace(3, -3, 53)[:, None]
    check(queries, targets, pairs, block=16)


@pytest.mark.parametrize("block", [8, 1024])
def test_two_ranks_equal_one_process(ranks, block):
    forth, back = rank_sides(*problem(6), block=block)
    for of_rank in ranks(2).run(cells.sides, 6, block):
        for found, expected in zip(of_rank, (forth, back)):
            assert torch.equal(found.ranks, expected.ranks)
            assert torch.equal(found.tied, expected.tied)


def test_reduced_precision_of_training_does_not_reach_the_scores():
    queries, targets, pairs = problem(7)
    expected = ranks(queries, targets, pairs)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            found = ranks(queries.requires_grad_(), targets, pairs)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def test_memory_is_a_few_tiles():
    queries, targets = unit(4000, 8, 0), unit(5000, 8, 1)  # all scores: 80 MB
    pairs = torch.arange(4000)[:, None].expand(-1, 2)
    ranks(queries[:600], targets[:600], pairs[:600], block=512)
    assert extra_mb(lambda: ranks(queries, targets, pairs, block=512)) < 40


def test_one_way_is_half_of_both():
    queries, targets, pairs = problem(8)
    forth, none = ranks(queries, targets, pairs, both=False)
    assert none is None and torch.equal(forth, ranks(queries, targets, pairs)[0])


def test_a_pair_named_twice_is_one_pair():
    queries, targets, pairs = problem(9)
    twice = torch.cat([pairs, pairs.flip(0)])
    for once, found in zip(ranks(queries, targets, pairs), ranks(queries, targets, twice)):
        assert torch.equal(once, found)


def test_perfect_and_constant_models():
    features, own = torch.eye(6), DIAGONAL[:6]
    assert recall_at(ranks(features, features, own)[0], 1) == 1.0
    constant = F.normalize(torch.ones(6, 6), dim=-1)
    forth, back = rank_sides(constant, constant, own)
    for side in (forth, back):
        assert side.ranks.tolist() == [5] * 6 and side.tied.all()
        recalls = [recall_at(side.ranks, k) for k in (1, 5, 6, 10)]
        assert recalls == [0.0, 0.0, 1.0, 1.0]


def test_a_constant_model_ties_whatever_its_numbers():
    constant = unit(1, 512, 3).expand(300, 512)
    forth, back = rank_sides(constant, constant[:200], DIAGONAL, block=128)
    assert forth.ranks[:50].tolist() == [199] * 50 and forth.tied[:50].all()
    assert forth.ranks[50:].tolist() == [200] * 250 and not forth.tied[50:].any()
    assert back.ranks[:50].tolist() == [299] * 50


def test_several_positives_do_not_stand_in_each_others_way():
    queries = torch.tensor([[1.0, 0.0]])
    targets = torch.tensor([[0.9, 0.0], [0.8, 0.0], [0.7, 0.0]])
    assert ranks(queries, targets, torch.tensor([[0, 0], [0, 1]]))[0].tolist() == [0]
    assert ranks(queries, targets, torch.tensor([[0, 1], [0, 2]]))[0].tolist() == [1]


def test_nothing_to_rank():
    none = torch.zeros(0, 2, dtype=torch.int64)
    forth, back = ranks(torch.eye(3), torch.eye(3)[:2], none)
    assert forth.tolist() == [2] * 3 and back.tolist() == [3] * 2
    forth, back = ranks(torch.zeros(0, 2), torch.eye(2), none)
    assert forth.tolist() == [] and back.tolist() == [0, 0]
    forth, back = ranks(torch.eye(2), torch.zeros(0, 2), none)
    assert forth.tolist() == [0, 0] and back.tolist() == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_broken_features_are_named(value):
    broken = torch.eye(4)
    broken[1] = value
    with pytest.raises(DataError, match="NaN, infinity"):
        ranks(broken, broken, DIAGONAL[:4])


@pytest.mark.parametrize("pair", [(4, 0), (0, 3), (-1, 0)])
def test_a_pair_that_points_nowhere_is_named(pair):
    with pytest.raises(DataError, match=rf"\({pair[0]}, {pair[1]}\) is outside 4 queries x 3"):
        ranks(torch.eye(4), torch.eye(4)[:3], torch.tensor([[0, 0], pair]))


@pytest.mark.parametrize("shape", [(3, 5), (300, 8), (5, 2100), (600, 2051)])
def test_packed_counts_equal_sums(shape):
    g = torch.Generator().manual_seed(0)
    a = torch.rand(shape, generator=g)
    for along in (0, 1):
        for share in (0.3, 0.0):  # 0.0: all compare true, as many as can be
            expected = (a >= share).sum(dim=along)
            found = module._count(torch.ge, a, torch.full((1, 1), share), along)
            assert torch.equal(found, expected)


def test_recall_counts_the_first_k():
    found = torch.tensor([0, 1, 4, 5, 9])
    assert [recall_at(found, k) for k in (1, 5, 10)] == pytest.approx([0.2, 0.6, 1.0])
