"""Search of one side against all scores, sorted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import clipkit.retrieval.memory.stored_side as stored_side
from clipkit.errors import DataError
from clipkit.retrieval.memory.stored_side import StoredSide, unit_rows
from clipkit.retrieval.scores import pair_scores
from clipkit.retrieval.top_k import top_k
from data_tools.memory.faiss_index import build_index
from tests.retrieval.memory.cells import rows_of, unit


def side_of(features: np.ndarray, rows=None, kind="flat", nprobe=1, nlist=4) -> StoredSide:
    held = np.arange(len(features)) if rows is None else rows
    features = features.astype(np.float16)
    index = build_index(features, held, kind=kind, nlist=nlist)
    return StoredSide(features, index, rows=rows, exact=kind == "flat", nprobe=nprobe)


@pytest.mark.parametrize("k", [1, 3, 50, 300])
def test_flat_equals_brute_force_bit_for_bit(k):
    side, queries = side_of(rows_of(300, 0)), unit(40)
    queries[20:30] = queries[3]
    scores, rows = side.search(queries, k)
    expected = top_k(queries, side.unit(torch.arange(300)), k)
    assert torch.equal(scores, expected[0]) and torch.equal(rows, expected[1])


def test_only_the_rows_it_holds():
    held = np.array([2, 3, 11, 40, 259])
    side, queries = side_of(rows_of(300, 0), held), unit(9)
    scores, rows = side.search(queries, 8)
    expected = top_k(queries, side.unit(torch.from_numpy(held)), 5)
    assert torch.equal(scores[:, :5], expected[0])
    assert torch.equal(rows[:, :5], torch.from_numpy(held)[expected[1]])
    assert bool((rows[:, 5:] == -1).all()) and bool(scores[:, 5:].isneginf().all())
    assert len(side) == 5


@pytest.mark.parametrize("copies", [1, 30, 400])
def test_ties_go_to_the_lowest_row_however_many_there_are(copies):
    features = np.random.default_rng(0).permutation(np.repeat(rows_of(5, 1), copies, axis=0))
    side, queries = side_of(features), unit(6)
    scores, rows = side.search(queries, 4)
    expected = top_k(queries, side.unit(torch.arange(len(features))), 4)
    assert torch.equal(rows, expected[1]) and torch.equal(scores, expected[0])


def test_scores_closer_than_fp32_products_are_told_apart():
    generator = np.random.default_rng(0)
    base = generator.normal(size=64)
    base /= np.linalg.norm(base)
    features = base + 1e-4 * generator.normal(size=(3000, 64))  # stored, a few last bits differ
    side = side_of(features)
    queries = torch.nn.functional.normalize(torch.from_numpy(base[None]).float())
    expected = top_k(queries, side.unit(torch.arange(3000)), 5)
    guess = torch.from_numpy(side.index.search(queries.numpy(), 13)[1])
    assert not bool(torch.isin(expected[1], guess).all())  # what faiss proposes first is not enough
    assert torch.equal(side.search(queries, 5)[1], expected[1])


def test_a_product_at_the_border_of_two_fp32_numbers_is_summed_again():
    rows = torch.tensor([[1.0, 2.0**-12, 2.0**-25], [1.0, 2.0**-12, -(2.0**-25)], [1.0, 0.0, 0.0]])
    every = torch.arange(3)
    for query in rows:
        expected = pair_scores(query[None], rows, torch.zeros_like(every), every)
        assert torch.equal(stored_side._row_scores(query[None], rows[None])[0], expected)


def test_keep_sees_candidates_best_first_from_the_first_on():
    side, queries = side_of(np.random.default_rng(0).normal(size=(300, 8))), unit(5)
    every = top_k(queries, side.unit(torch.arange(300)), 300)[1]

    def third_on(numbers, scores, rows):
        assert torch.equal(rows, every[numbers][:, : rows.shape[1]])
        assert bool((scores.diff(dim=1) <= 0).all())
        return torch.arange(rows.shape[1]).expand_as(rows) >= 2

    assert torch.equal(side.search(queries, 4, third_on)[1], every[:, 2:6])


def test_more_are_fetched_until_k_are_kept():
    side, queries = side_of(np.random.default_rng(0).normal(size=(300, 8))), unit(5)
    every = top_k(queries, side.unit(torch.arange(300)), 300)
    worst = every[0][:, -2:-1]
    scores, rows = side.search(queries, 3, lambda n, s, r: s <= worst[n])
    assert torch.equal(rows[:, :2], every[1][:, -2:]) and bool((rows[:, 2] == -1).all())
    assert bool(scores[:, 2].isneginf().all())


def test_blocks_change_nothing(monkeypatch):
    side, queries = side_of(rows_of(200, 0)), unit(50)
    expected = side.search(queries, 7)
    for name, size in (("_QUERIES", 3), ("_CANDIDATES", 40), ("_GATHERED", 5)):
        monkeypatch.setattr(stored_side, name, size)
        found = side.search(queries, 7)
        assert all(torch.equal(a, b) for a, b in zip(found, expected))


def test_ivf_scores_are_exact_and_all_lists_are_as_good_as_flat():
    features = rows_of(500, 3, 16)
    queries = unit(40, 16)
    flat = side_of(features).search(queries, 5)
    side = side_of(features, kind="ivf_sq8", nprobe=1, nlist=16)
    few = side.search(queries, 5)
    exact = side.cosines(queries, few[1].clamp(min=0))
    assert torch.equal(few[0], exact.masked_fill(few[1] < 0, float("-inf")))
    assert bool((few[0] <= flat[0]).all()) and not torch.equal(few[0], flat[0])
    side.nprobe = 16
    assert torch.equal(side.search(queries, 5)[0], flat[0])
    assert bool((side.search(queries, 500)[1] >= 0).all())


def test_empty_and_unusable_queries():
    empty = StoredSide(np.zeros((0, 8), np.float16), None)
    scores, rows = empty.search(unit(3), 2)
    assert rows.tolist() == [[-1, -1]] * 3 and bool(scores.isneginf().all())
    side = side_of(rows_of(300, 0))
    assert side.search(unit(0), 2)[1].shape == (0, 2)
    for queries, k in ((unit(2, 7), 1), (unit(2), 0), (unit(2)[0], 1)):
        with pytest.raises(DataError, match="dimension 8 cannot answer"):
            side.search(queries, k)
    with pytest.raises(DataError, match="NaN"):
        side.search(torch.full((1, 8), float("nan")), 1)


def test_unit_rows_and_zeros():
    stored = rows_of(20, 0).astype(np.float16)
    stored[4] = 0
    found = side_of(stored).unit(torch.tensor([[0, -1], [4, 19]]))
    assert found.shape == (2, 2, 8) and found.dtype == torch.float32
    assert not found[0, 1].any() and not found[1, 0].any()
    assert float((found[0, 0].norm() - 1).abs()) < 1e-6
    assert np.array_equal(found[1, 1].numpy(), unit_rows(stored, np.array([19]))[0])
