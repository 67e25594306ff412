"""The best targets against a stable sort of all scores."""

from __future__ import annotations

import pytest
import torch

from clipkit.errors import DataError
from clipkit.retrieval.scores import tile_scores
from clipkit.retrieval.top_k import top_k
from tests.retrieval.cells import problem, unit


@pytest.mark.parametrize("block", [1, 6, 16, 1024])
@pytest.mark.parametrize("k", [1, 3, 53, 90])
def test_equals_a_stable_sort(k, block):
    queries, targets, _ = problem(0)  # some targets are equal
    expected = tile_scores(queries, targets).sort(dim=1, descending=True, stable=True)
    scores, ids = top_k(queries, targets, k, block)
    assert torch.equal(scores, expected.values[:, :k])
    assert torch.equal(ids, expected.indices[:, :k])


def test_ties_by_lowest_id_of_either_sign():
    rows = torch.tensor([[1.0], [-1.0], [0.0]])
    targets = torch.tensor([[-2.0], [3.0], [-0.0], [3.0], [0.0], [-2.0]])
    scores, ids = top_k(rows, targets, 6, 2)
    assert ids.tolist() == [[1, 3, 2, 4, 0, 5], [0, 5, 2, 4, 1, 3], [0, 1, 2, 3, 4, 5]]
    assert scores[1].tolist() == [2.0, 2.0, 0.0, 0.0, -3.0, -3.0]


def test_a_constant_model_gives_the_first_ids():
    constant = unit(1, 64, 0).expand(40, 64)
    assert top_k(constant, constant, 3, 8)[1].tolist() == [[0, 1, 2]] * 40


def test_nothing_to_find():
    scores, ids = top_k(torch.eye(2), torch.zeros(0, 2), 5)
    assert scores.shape == (2, 0) and ids.shape == (2, 0)
    assert top_k(torch.zeros(0, 2), torch.eye(2), 5)[0].shape == (0, 2)


def test_broken_input_is_named():
    with pytest.raises(DataError, match="k = 0"):
        top_k(torch.eye(2), torch.eye(2), 0)
    with pytest.raises(DataError, match="NaN"):
        top_k(torch.full((1, 2), float("nan")), torch.eye(2), 1)
