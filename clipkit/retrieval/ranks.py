"""Recall@k by blocks: exact, any number of positives. Ties count against the model.

Shapes: N queries, M targets, D embed dim.
"""

from __future__ import annotations

import torch
from torch import Tensor


def best_ranks(queries: Tensor, targets: Tensor, positives: Tensor, block: int = 1024) -> Tensor:
    """Rank of each query's best positive, 0 = first.

    The rank is the number of *negatives* scoring at least as high as the best positive, so a
    constant model ranks last, not first. Scores are summed in fp64 and compared in fp32: equal
    features then tie, wherever they stand in the product.

    Args:
        queries: (N, D) unit rows.
        targets: (M, D) unit rows.
        positives: (N, M) bool.
        block: Queries scored at once.

    Returns:
        (N,) int64; M where a query has no positive.
    """
    ranks = []
    for start in range(0, len(queries), block):
        rows = queries[start : start + block].double()
        scores = (rows @ targets.double().T).float()  # (block, M)
        positive = positives[start : start + block]
        best = scores.masked_fill(~positive, float("-inf")).amax(dim=1, keepdim=True)
        ahead = ((scores >= best) & ~positive).sum(dim=1)
        ranks.append(torch.where(positive.any(dim=1), ahead, len(targets)))
    return torch.cat(ranks) if ranks else torch.zeros(0, dtype=torch.int64)


def recall_at(ranks: Tensor, k: int) -> float:
    """Share of queries with a positive among the first k."""
    return float((ranks < k).double().mean())
