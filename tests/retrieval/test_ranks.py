"""Ranks against brute force; a model that knows nothing scores nothing."""

import pytest
import torch
import torch.nn.functional as F

from clipkit.retrieval.ranks import best_ranks, recall_at


def brute_force(queries, targets, positives):
    ranks = []
    for i in range(len(queries)):
        scores = [float(queries[i] @ t) for t in targets]
        own = [s for s, p in zip(scores, positives[i]) if p]
        others = [s for s, p in zip(scores, positives[i]) if not p]
        ranks.append(sum(s >= max(own) for s in others) if own else len(targets))
    return ranks


@pytest.mark.parametrize("block", [1, 7, 1024])
@pytest.mark.parametrize("seed", range(3))
def test_against_brute_force_with_many_positives(seed, block):
    g = torch.Generator().manual_seed(seed)
    # small integers: exact scores, many ties
    queries = torch.randint(-2, 3, (23, 4), generator=g).float()
    targets = torch.randint(-2, 3, (31, 4), generator=g).float()
    positives = torch.rand(23, 31, generator=g) < 0.15
    assert best_ranks(queries, targets, positives, block).tolist() == brute_force(
        queries, targets, positives
    )


def test_perfect_and_constant_models():
    features = torch.eye(6)
    positives = torch.eye(6, dtype=torch.bool)
    assert recall_at(best_ranks(features, features, positives), 1) == 1.0
    constant = F.normalize(torch.ones(6, 6), dim=-1)
    ranks = best_ranks(constant, constant, positives)
    assert ranks.tolist() == [5] * 6
    assert recall_at(ranks, 1) == 0.0 and recall_at(ranks, 5) == 0.0 and recall_at(ranks, 6) == 1.0


def test_several_positives_do_not_stand_in_each_others_way():
    queries = torch.tensor([[1.0, 0.0]])
    targets = torch.tensor([[0.9, 0.0], [0.8, 0.0], [0.7, 0.0]])
    assert best_ranks(queries, targets, torch.tensor([[True, True, False]])).tolist() == [0]
    assert best_ranks(queries, targets, torch.tensor([[False, True, True]])).tolist() == [1]


def test_no_positive_and_no_query():
    ranks = best_ranks(torch.eye(2), torch.eye(2), torch.tensor([[False, False], [False, True]]))
    assert ranks.tolist() == [2, 0]
    assert (
        best_ranks(torch.zeros(0, 2), torch.eye(2), torch.zeros(0, 2, dtype=torch.bool)).tolist()
        == []
    )


def test_half_precision_features_are_scored_in_fp32():
    g = torch.Generator().manual_seed(0)
    features = F.normalize(torch.randn(50, 16, generator=g), dim=-1)
    positives = torch.eye(50, dtype=torch.bool)
    assert best_ranks(features.half(), features.half(), positives).tolist() == [0] * 50


def test_recall_counts_the_first_k():
    ranks = torch.tensor([0, 1, 4, 5, 9])
    assert [recall_at(ranks, k) for k in (1, 5, 10)] == pytest.approx([0.2, 0.6, 1.0])
