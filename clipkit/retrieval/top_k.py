"""The k best targets of every query, exact, by blocks; among equal scores the lowest id first.

Shapes: N queries, M targets, D embed dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipkit.errors import DataError
from clipkit.retrieval.scores import full_precision, tile_scores

_SIGN = 0x7FFFFFFF
_IDS = 2**31  # more ids than a key has room for


def top_k(queries: Tensor, targets: Tensor, k: int, block: int = 1024) -> tuple[Tensor, Tensor]:
    """Score every query with every target, keeping k candidates each.

    Args:
        queries: (N, D) rows of any floating type.
        targets: (M, D) rows, fewer than 2^31.
        k: How many to keep.
        block: Queries and targets scored at once; memory grows with its square.

    Returns:
        scores (N, k') fp32, falling, and ids (N, k') int64; k' is the smaller of k and M.

    Raises:
        DataError: k is less than 1, there are too many targets, or a score is not finite.
    """
    if k < 1 or len(targets) >= _IDS:
        raise DataError(f"top_k of {len(targets)} targets with k = {k}: give k >= 1, M < 2^31")
    k = min(k, len(targets))
    scores = queries.new_empty(len(queries), k, dtype=torch.float32)
    ids = torch.empty_like(scores, dtype=torch.int64)
    with full_precision():
        for i in range(0, len(queries) if k else 0, block):
            rows = queries[i : i + block]
            best = torch.empty(len(rows), 0, dtype=torch.int64, device=queries.device)
            for j in range(0, len(targets), block):
                keys = _keys(tile_scores(rows, targets[j : j + block]), j)
                best = torch.cat([best, keys], dim=1)
                best = best.topk(min(k, best.shape[1]), dim=1).values
            scores[i : i + block], ids[i : i + block] = _unpacked(best)
    return scores, ids


def _keys(scores: Tensor, first: int) -> Tensor:
    """(R, C) int64 that sort by score, then by falling id: all differ, so their order is unique."""
    if not bool(scores.isfinite().all()):
        raise DataError("features hold NaN, infinity, or numbers too large; the model is broken")
    ids = torch.arange(first, first + scores.shape[1], device=scores.device)
    bits = (scores + 0.0).view(torch.int32)  # + 0.0: minus zero equals zero
    return (_flipped(bits).long() << 32) + (_IDS - 1 - ids)


def _flipped(bits: Tensor) -> Tensor:
    """Bits of fp32 <-> integers in the same order; its own inverse."""
    return torch.where(bits < 0, bits ^ _SIGN, bits)


def _unpacked(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Scores and ids of keys."""
    scores = _flipped((keys >> 32).int()).view(torch.float32)
    return scores, _IDS - 1 - (keys & 0xFFFFFFFF)
