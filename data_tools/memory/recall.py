"""Recall of an index, measured: the share of the k true neighbours that a search finds.

A row that is found counts if it is as near as the k-th true neighbour; so of rows with equal
features any may be found. Shapes: q queries, k neighbours, D embed dim.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from clipkit.retrieval.memory.stored_side import StoredSide
from clipkit.retrieval.top_k import top_k
from data_tools.memory.sources import BLOCK


def sampled_rows(rows: np.ndarray, count: int, seed: int) -> Tensor:
    """(q,) of the rows, drawn by a seed, rising."""
    drawn = np.random.default_rng([seed, 1]).choice(rows, min(count, len(rows)), replace=False)
    return torch.from_numpy(np.sort(drawn))


def true_scores(side: StoredSide, queries: Tensor, own: Tensor, k: int) -> Tensor:
    """(q, k) scores of the true neighbours, by blocks of all rows; -inf where there are fewer.

    Args:
        side: What is searched.
        queries: (q, D).
        own: (q,) row of each query, which is no neighbour.
        k: How many.
    """
    best = torch.full((len(queries), k), float("-inf"))
    rows = np.arange(len(side.features)) if side.rows is None else side.rows
    for start in range(0, len(rows), BLOCK):
        block = torch.from_numpy(rows[start : start + BLOCK])
        scores, places = top_k(queries, side.unit(block), k + 1)
        scores = scores.masked_fill(block[places] == own[:, None], float("-inf"))
        best = torch.cat([best, scores], dim=1).topk(k).values
    return best


def recall(side: StoredSide, queries: Tensor, own: Tensor, truth: Tensor) -> float:
    """Share of the true neighbours that `side.search` finds; 1 where there are none.

    Args:
        side, queries, own: As `true_scores`.
        truth: (q, k) its result.
    """

    def others(numbers: Tensor, scores: Tensor, rows: Tensor) -> Tensor:
        return rows != own[numbers][:, None]

    k = truth.shape[1]
    found, _ = side.search(queries, k, others)
    wanted = truth.isfinite().sum(dim=1)  # (q,)
    least = truth.masked_fill(truth.isinf(), float("inf")).amin(dim=1, keepdim=True)
    hits = (found >= least).sum(dim=1)
    total = int(wanted.sum())
    return int(torch.minimum(hits, wanted).sum()) / total if total else 1.0
