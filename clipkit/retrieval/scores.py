"""What a score is: the dot product of two rows, summed in fp64 in one fixed order, rounded to fp32.

A BLAS sums in an order that depends on the shape of the product, the library and the number of
threads, so equal features may differ in the last bit and a tie becomes a win. The score here is a
pure function of its two rows. Where a product of matrices is needed for speed, its error bound
tells which entries it settles; the rest are summed again.

Shapes: N queries, M targets, P pairs, R x C a tile, D embed dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_PAIRS = 256  # pairs summed at once: they fit a core's cache


def pair_scores(queries: Tensor, targets: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Scores of chosen pairs.

    Args:
        queries: (N, D) rows of any floating type.
        targets: (M, D) rows.
        rows: (P,) int64, which query.
        columns: (P,) int64, which target.

    Returns:
        (P,) fp32.
    """
    scores = queries.new_empty(len(rows), dtype=torch.float32)
    parts = zip(rows.split(_PAIRS), columns.split(_PAIRS), scores.split(_PAIRS))
    for r, c, out in parts:  # into place: small results kept between large ones split the heap
        out.copy_(_fixed_order_dot(queries[r].double(), targets[c].double()))
    return scores


def _fixed_order_dot(a: Tensor, b: Tensor) -> Tensor:
    """(P, D), (P, D) -> (P,): the upper half is added to the lower until one column is left."""
    terms = a.mul_(b)
    width = terms.shape[1]
    while width > 1:
        kept = (width + 1) // 2
        terms[:, : width - kept] += terms[:, kept:width]
        width = kept
    return terms[:, 0]


def tile_scores(queries: Tensor, targets: Tensor) -> Tensor:
    """Scores of every query with every target, (R, D), (C, D) -> (R, C) fp32.

    An fp64 product is rounded to fp32 where its error cannot change the rounding; the few entries
    at the border of two fp32 numbers are summed by `pair_scores`.
    """
    rows, columns = queries.double(), targets.double()
    error = error_bound(rows.shape[1], torch.float64) * rows.norm(dim=1, keepdim=True)  # (R, 1)
    error = error * columns.norm(dim=1).max()
    product = rows @ columns.T  # (R, C)
    scores = (product - error).float()
    unsure = (scores != (product + error).float()).nonzero()  # (P, 2)
    if len(unsure):
        i, j = unsure.T
        scores[i, j] = pair_scores(queries, targets, i, j)
    return scores


def error_bound(dim: int, dtype: torch.dtype) -> float:
    """How far a product's entry may be from its score, relative to the norms of the two rows.

    A sum of `dim` products, in any order, errs by at most n u / (1 - n u) with n = dim (Higham
    2002, section 3.1). A few more roundings are granted: of the rows, of the score, of the score's
    own sum in fp64, and of the number it is compared with.
    """
    unit = torch.finfo(dtype).eps / 2
    n = dim + 8 if dtype is torch.float32 else 2 * dim + 8
    return n * unit / (1 - n * unit)


@contextmanager
def full_precision() -> Iterator[None]:
    """fp32 products in fp32, not in TF32 or bf16, whatever training asked for; no gradient.

    Autocast need not be left: it does not touch fp64, nor products with an `out`.
    """
    wanted = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_float32_matmul_precision(wanted)
