"""A score depends on its two rows alone, and an error bound is never exceeded."""

from __future__ import annotations

import math

import pytest
import torch

from clipkit.bench.measure import extra_mb
from clipkit.retrieval import scores as module
from clipkit.retrieval.scores import error_bound, full_precision, pair_scores, tile_scores
from tests.retrieval.cells import unit


def all_pairs(queries, targets):
    rows, columns = torch.ones(len(queries), len(targets)).nonzero().T
    return pair_scores(queries, targets, rows, columns).view(len(queries), len(targets))


@pytest.mark.parametrize("dim", [1, 2, 3, 7, 64, 100])
def test_a_pair_is_the_sum_of_products(dim):
    queries, targets = unit(5, dim, 0), unit(6, dim, 1)
    found = all_pairs(queries, targets)
    for i in range(5):
        for j in range(6):
            exact = math.fsum((queries[i].double() * targets[j].double()).tolist())
            assert float(found[i, j]) == float(torch.tensor(exact).float())


def test_inputs_are_not_changed():
    queries = unit(4, 8, 0).double()
    before = queries.clone()
    all_pairs(queries, queries)
    tile_scores(queries, queries)
    assert torch.equal(queries, before)


@pytest.mark.parametrize("pairs", [1, 7, 4096])
def test_the_number_of_pairs_at_once_changes_nothing(pairs, monkeypatch):
    queries, targets = unit(20, 33, 0), unit(30, 33, 1)
    expected = all_pairs(queries, targets)
    monkeypatch.setattr(module, "_PAIRS", pairs)
    assert torch.equal(all_pairs(queries, targets), expected)
    assert torch.equal(all_pairs(targets, queries), expected.T)


def test_memory_does_not_grow_with_pairs_times_dimension():
    rows = unit(100, 256, 0)
    of_pair = torch.arange(100_000) % 100  # 200 MB as rows in fp64
    assert extra_mb(lambda: pair_scores(rows, rows, of_pair, of_pair)) < 50


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_a_tile_holds_the_scores_of_its_pairs(dtype):
    queries, targets = unit(40, 129, 0).to(dtype), unit(50, 129, 1).to(dtype)
    assert torch.equal(tile_scores(queries, targets), all_pairs(queries, targets))


def test_a_product_at_the_border_of_two_numbers_is_summed_again(monkeypatch):
    """1 + 2^-24 stands between two fp32 numbers: the product's last bit would decide."""
    asked = []
    score = module.pair_scores

    def counted(*arguments):
        asked.append(len(arguments[2]))
        return score(*arguments)

    monkeypatch.setattr(module, "pair_scores", counted)
    row = torch.tensor([[1.0, 2.0**-12]])
    assert tile_scores(row, row).tolist() == [[1.0]] and asked == [1]
    clear = torch.tensor([[1.0, 2.0**-10]])
    assert tile_scores(clear, clear).tolist() == [[1.0 + 2.0**-20]] and asked == [1]


@pytest.mark.parametrize("dim", [3, 64, 1000])
def test_products_stay_within_the_bound(dim):
    for seed in range(3):
        queries, targets = unit(100, dim, seed).abs(), unit(100, dim, seed + 50).abs()
        exact = queries.double() @ targets.double().T
        assert float((queries @ targets.T - exact).abs().max()) < error_bound(dim, torch.float32)
    # a bound that no order of summation can break: each of dim roundings up by half a unit
    assert error_bound(dim, torch.float32) >= (1 + 2.0**-24) ** (dim + 4) - 1


def test_full_precision_is_left_as_it_was_found():
    torch.set_float32_matmul_precision("medium")
    try:
        with pytest.raises(KeyError), full_precision():
            assert torch.get_float32_matmul_precision() == "highest"
            raise KeyError
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
