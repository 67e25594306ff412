"""Normalised discounted cumulative gain with graded relevance, Järvelin & Kekäläinen 2002.

Linear gain, discount 1 / log2(rank + 1), as scikit-learn's ndcg_score and trec_eval have it; the
ideal ranking is made of *all* relevant documents. Ties count against the model: of documents that
score alike the less relevant one stands first, so a constant model ranks every relevant document
last.

Shapes: N queries, M documents.
"""

from __future__ import annotations

import torch
from torch import Tensor


def top_order(scores: Tensor, gains: Tensor, k: int, *, ties_for: bool = False) -> Tensor:
    """The first k documents of each query.

    Args:
        scores: (N, M) numbers, larger is better.
        gains: (N, M) relevance, 0 = irrelevant.
        k: Length of the list; min(k, M) documents come back.
        ties_for: Break ties for the model instead of against it; a list that changes holds a tie
            that matters.

    Returns:
        (N, min(k, M)) int64 columns; documents of equal score and gain in the order of columns.
    """
    k = min(k, scores.shape[1])
    last = scores.topk(k).values[:, -1:]  # (N, 1)
    # everything that ties with place k must be seen, or the cut would break that tie by chance
    width = int((scores >= last).sum(dim=1).max()) if len(scores) else k
    order = scores.topk(width).indices.sort(dim=1).values  # (N, width)
    for keys, descending in ((gains, ties_for), (scores, True)):
        ranks = keys.gather(1, order).argsort(dim=1, descending=descending, stable=True)
        order = order.gather(1, ranks)
    return order[:, :k]


def discounted_gain(gains: Tensor) -> Tensor:
    """(N, k) gains in the order of a ranking -> (N,) fp64 discounted cumulative gain."""
    places = torch.arange(gains.shape[1], dtype=torch.float64)
    return (gains.double() / torch.log2(places + 2)).sum(dim=1)


def normalised_gain(found: Tensor, gains: Tensor) -> Tensor:
    """Discounted gain of a ranked list over that of the best list that `gains` allow.

    With all documents as `gains` it is nDCG@k. With the retrieved ones it asks how well the list is
    sorted, not whether relevant documents are in it: one of ten relevant documents at rank 1 gives
    1. Some published numbers (MixBench) are of that kind; they cannot be compared with nDCG.

    Args:
        found: (N, k) gains of the retrieved documents, in their order.
        gains: (N, any) gains the ideal list is made of.

    Returns:
        (N,) fp64 in 0 .. 1; 0 where nothing is relevant.
    """
    best = gains.topk(min(found.shape[1], gains.shape[1])).values
    ideal = discounted_gain(best)
    return torch.where(ideal > 0, discounted_gain(found) / ideal.clamp(min=1e-300), 0.0)


def random_ndcg(gains: Tensor, k: int) -> Tensor:
    """(N,) expected nDCG@k of a ranking in random order."""
    ideal = gains.topk(min(k, gains.shape[1])).values
    expected = gains.double().mean(dim=1, keepdim=True).expand(-1, ideal.shape[1])
    return normalised_gain(expected, gains)
