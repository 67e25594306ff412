"""faiss indexes over stored features: flat, or inverted lists of 8-bit codes.

Shapes: N rows, D embed dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from clipkit.retrieval.memory.stored_side import unit_rows
from data_tools.memory.sources import BLOCK

FLAT, IVF = "flat", "ivf_sq8"
_PER_LIST = 64  # rows that k-means sees for each list
_LEAST = 39  # below so many rows for each list faiss calls k-means unreliable


def default_lists(rows: int) -> int:
    """4 sqrt(N), as faiss's guidelines have it up to a million rows; fewer where rows are few."""
    return max(1, min(round(4 * math.sqrt(rows)), rows // _LEAST))


def build_index(
    features: np.ndarray,
    rows: np.ndarray,
    *,
    kind: str,
    nlist: int = 1,
    seed: int = 0,
    tick: Callable[[int], None] = lambda done: None,
) -> Any:
    """An inner-product index of unit rows, added by blocks.

    Args:
        features: (N, D) float16, mapped.
        rows: (n,) rising; those to add, in this order.
        kind: FLAT: fp32, exact. IVF: lists around `nlist` centroids, 8 bits a number.
        nlist: Of IVF.
        seed: Of k-means and of what it is trained on.
        tick: Told the rows added.
    """
    import faiss

    index = faiss.IndexFlatIP(features.shape[1])
    if kind == IVF:
        index = _inverted_lists(index, nlist, seed)
        size = min(len(rows), _PER_LIST * nlist)
        seen = np.random.default_rng(seed).choice(len(rows), size, replace=False)
        index.train(unit_rows(features, rows[np.sort(seen)]))
    for start in range(0, len(rows), BLOCK):
        block = unit_rows(features, rows[start : start + BLOCK])
        index.add(block)
        tick(len(block))
    return index


def _inverted_lists(centroids: Any, nlist: int, seed: int) -> Any:
    import faiss

    code, metric = faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
    index = faiss.IndexIVFScalarQuantizer(centroids, centroids.d, nlist, code, metric)
    index.cp.seed, index.cp.spherical = seed + 1, True
    index.cp.min_points_per_centroid = 1
    # faiss frees it with the index, but Python would first
    index.own_fields = True
    centroids.this.disown()
    return index
