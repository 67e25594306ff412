"""Repeats of equal values: the first stays."""

from __future__ import annotations

import numpy as np
import pyarrow


def first_of(values: pyarrow.ChunkedArray) -> np.ndarray:
    """(n,) int64: place of the first equal value, -1: it is the first, or null."""
    codes = values.combine_chunks().dictionary_encode()
    if isinstance(codes, pyarrow.ChunkedArray):
        codes = codes.unify_dictionaries().combine_chunks()
    numbers = codes.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    known = numbers >= 0
    first = np.full(numbers.max(initial=-1) + 1, len(numbers), dtype=np.int64)
    np.minimum.at(first, numbers[known], np.flatnonzero(known))
    of = np.full(len(numbers), -1)
    of[known] = first[numbers[known]]
    return np.where(of == np.arange(len(of)), -1, of)
