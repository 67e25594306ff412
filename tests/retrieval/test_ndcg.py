"""nDCG against scikit-learn and against a ranking written out; ties against the model."""

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import ndcg_score

from clipkit.retrieval.ndcg import normalised_gain, random_ndcg, top_order


def ndcg_at_k(scores, gains, k):
    return normalised_gain(gains.gather(1, top_order(scores, gains, k)), gains)


def ndcg_at_k_retrieved_only(scores, gains, k):
    found = gains.gather(1, top_order(scores, gains, k))
    return normalised_gain(found, found)


def draw(seed, queries=40, documents=30, levels=4, share=0.3):
    """Distinct scores, sparse graded gains with at least one above 0."""
    rng = np.random.default_rng(seed)
    scores = np.stack([rng.permutation(documents) for _ in range(queries)]).astype(np.float32)
    gains = rng.integers(1, levels, (queries, documents)) * (
        rng.random((queries, documents)) < share
    )
    gains[:, 0] = np.maximum(gains[:, 0], 1)
    return torch.from_numpy(scores), torch.from_numpy(gains.astype(np.float32))


def by_hand(scores, gains, k):
    """One query, ties against the model, lists and loops only."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], gains[i]))[:k]
    best = sorted(gains, reverse=True)[:k]
    total = sum(gains[d] / math.log2(place + 2) for place, d in enumerate(order))
    return total / sum(g / math.log2(place + 2) for place, g in enumerate(best))


@pytest.mark.parametrize("k", [1, 3, 10, 30, 50])
@pytest.mark.parametrize("levels", [2, 4])
def test_equals_scikit_learn_without_ties(k, levels):
    scores, gains = draw(k, levels=levels)
    found = ndcg_at_k(scores, gains, k)
    assert found.dtype == torch.float64
    ours = [ndcg_score(g[None], s[None], k=k) for g, s in zip(gains.numpy(), scores.numpy())]
    assert found.numpy() == pytest.approx(np.array(ours), abs=1e-12)


@pytest.mark.parametrize("k", [1, 2, 5, 12, 20])
def test_equals_a_ranking_by_hand_with_ties(k):
    rng = np.random.default_rng(k)
    scores = torch.from_numpy(rng.integers(0, 4, (50, 12)).astype(np.float32))
    _, gains = draw(k, 50, 12)
    expected = [by_hand(s, g, k) for s, g in zip(scores.tolist(), gains.tolist())]
    assert ndcg_at_k(scores, gains, k).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_ties_give_the_least_and_the_most_of_all_orders(seed):
    rng = np.random.default_rng(seed)
    scores = torch.from_numpy(rng.integers(0, 2, (1, 6)).astype(np.float32))
    gains = torch.from_numpy(rng.integers(0, 3, (1, 6)).astype(np.float32))
    gains[0, 0] = 1
    k = 3
    orders = [scores + 1e-3 * torch.tensor([p]) for p in itertools.permutations(range(6))]
    values = [float(ndcg_at_k(s, gains, k)) for s in orders]
    lucky = gains.gather(1, top_order(scores, gains, k, ties_for=True))
    assert float(ndcg_at_k(scores, gains, k)) == pytest.approx(min(values))
    # the list that luck gives, scored as if its order were the model's
    ideal = sum(g / math.log2(i + 2) for i, g in enumerate(sorted(gains[0].tolist())[::-1][:k]))
    most = sum(g / math.log2(i + 2) for i, g in enumerate(lucky[0].tolist())) / ideal
    assert most == pytest.approx(max(values))


def test_a_constant_model_finds_nothing():
    gains = torch.zeros(3, 40)
    gains[:, :5] = 2
    assert ndcg_at_k(torch.ones(3, 40), gains, 10).tolist() == [0.0, 0.0, 0.0]


def test_a_tie_across_the_cut_is_not_broken_by_the_order_of_columns():
    scores = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    for column in range(3):
        gains = torch.zeros(1, 4)
        gains[0, column] = 1
        assert float(ndcg_at_k(scores, gains, 2)) == 0.0
        assert top_order(scores, gains, 2, ties_for=True)[0, 0] == column


def test_order_of_equal_documents_is_that_of_columns():
    scores = torch.tensor([[0.0, 1.0, 1.0, 1.0, 2.0]])
    assert top_order(scores, torch.zeros(1, 5), 3).tolist() == [[4, 1, 2]]
    assert top_order(scores, torch.zeros(1, 5), 9).tolist() == [[4, 1, 2, 3, 0]]
    assert top_order(scores[:0], torch.zeros(0, 5), 3).shape == (0, 3)


def test_the_published_variant_forgets_what_was_not_retrieved():
    scores, gains = torch.arange(20.0).flip(0)[None], torch.ones(1, 20)
    gains[0, 1:10] = 0
    assert float(ndcg_at_k_retrieved_only(scores, gains, 10)) == 1.0
    assert float(ndcg_at_k(scores, gains, 10)) < 0.3
    # what the published code computes: scikit-learn on the ten retrieved
    scores, gains = draw(7)
    top = scores.topk(10)
    kept = gains.gather(1, top.indices).numpy()
    expected = [ndcg_score(g[None], s[None], k=10) for g, s in zip(kept, top.values.numpy())]
    found = ndcg_at_k_retrieved_only(scores, gains, 10)
    assert found.tolist() == pytest.approx(expected, abs=1e-12)
    assert bool((found >= ndcg_at_k(scores, gains, 10) - 1e-12).all())


def test_nothing_relevant_is_zero_and_one_relevant_has_a_closed_form():
    scores = torch.arange(6.0).flip(0)[None]
    assert float(ndcg_at_k(scores, torch.zeros(1, 6), 3)) == 0.0
    assert float(ndcg_at_k_retrieved_only(scores, torch.zeros(1, 6), 3)) == 0.0
    for place in range(6):
        gains = torch.zeros(1, 6)
        gains[0, place] = 3
        expected = 1 / math.log2(place + 2) if place < 3 else 0.0
        assert float(ndcg_at_k(scores, gains, 3)) == pytest.approx(expected)


@pytest.mark.parametrize("k", [1, 3, 5, 8])
def test_random_order_has_the_mean_over_all_orders(k):
    gains = torch.tensor([[2.0, 1.0, 0.0, 0.0, 1.0]])
    orders = torch.tensor(list(itertools.permutations(range(5))), dtype=torch.float32)
    values = ndcg_at_k(orders, gains.expand(len(orders), -1), k)
    assert float(random_ndcg(gains, k)) == pytest.approx(float(values.mean()))


def test_many_ties_are_ordered_by_score_then_gain_then_column():
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(rng.integers(0, 3, (4, 2000)).astype(np.float32))
    gains = torch.from_numpy(rng.integers(0, 3, (4, 2000)).astype(np.float32))
    found = top_order(scores, gains, 900).tolist()
    for row, s, g in zip(found, scores.tolist(), gains.tolist()):
        assert row == sorted(range(2000), key=lambda i: (-s[i], g[i], i))[:900]
