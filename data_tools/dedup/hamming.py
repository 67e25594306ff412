"""Greedy choice of exemplars among 64-bit hashes: exact, without comparing all pairs.

Shapes: n hashes, u distinct ones.
"""

from __future__ import annotations

import faiss
import numpy as np

_BITS = np.array([bin(i).count("1") for i in range(1 << 16)], dtype=np.uint8)
_WIDTH = 64
_BANDS, _MOST_FLIPS = 4, 1


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(len(a), len(b)) uint8: differing bits of uint64 hashes."""
    different = (a[:, None] ^ b[None, :]).view(np.uint16).reshape(len(a), len(b), 4)
    return _BITS[different].sum(axis=-1, dtype=np.uint8)


def exemplars(
    hashes: np.ndarray, threshold: int, mirrored: np.ndarray | None = None, block: int = 512
) -> tuple[np.ndarray, np.ndarray]:
    """In order, each item that no exemplar covers becomes one; the first that covers an item is it.

    An exemplar covers a later item whose hash, or whose mirror image's hash, differs from the
    exemplar's hash in at most `threshold` bits.

    Args:
        hashes: (n,) uint64, in the order that decides.
        threshold: Bits; below 0 nothing is covered.
        mirrored: (n,) uint64 of the mirror images.
        block: Hashes compared with each other at once.

    Returns:
        (n,) int64 place of the exemplar, -1: is one itself; (n,) int64 distance to it, 0 there.
    """
    n = len(hashes)
    if threshold < 0 or not n:
        return np.full(n, -1), np.zeros(n, dtype=np.int64)
    looks = hashes[:, None] if mirrored is None else np.stack([hashes, mirrored], axis=1)
    _, first, inverse = np.unique(looks, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)  # distinct hashes in the order of their first items
    first, rank = first[order], np.argsort(order)[inverse.reshape(-1)]
    of, distance = _exemplars_of_distinct(looks[first], threshold, block)
    items = np.arange(n)
    result = np.where(of[rank] < 0, first[rank], first[of[rank]])
    return np.where(result == items, -1, result), distance[rank]


def _exemplars_of_distinct(
    looks: np.ndarray, threshold: int, block: int
) -> tuple[np.ndarray, np.ndarray]:
    """`exemplars` of (u, 1 or 2) hashes, no two rows equal."""
    u = len(looks)
    of, distance = np.full(u, -1), np.zeros(u, dtype=np.int64)
    kept = _Kept(threshold)
    for start in range(0, u, block):
        own = np.arange(start, min(start + block, u))
        if start:
            of[own], distance[own] = kept.first_near(looks[own])
        rest = own[of[own] < 0]
        near = np.min([distances(looks[rest, 0], look) for look in looks[rest].T], axis=0)
        chosen = []
        for i, item in enumerate(rest):
            if of[item] < 0:
                chosen.append(item)
                covered = np.flatnonzero((near[i, i + 1 :] <= threshold) & (of[rest[i + 1 :]] < 0))
                of[rest[i + 1 + covered]] = item
                distance[rest[i + 1 + covered]] = near[i, i + 1 + covered]
        kept.add(np.array(chosen, dtype=np.int64), looks[chosen, 0])
    return of, distance


class _Kept:
    """Exemplars so far, searched by bands of bits.

    Cut two hashes that differ in at most t bits into four bands: in one of these they differ in at
    most t // 4 bits. So looking up each band with up to so many bits flipped finds every pair.
    Where that is many look-ups, all are compared.
    """

    def __init__(self, threshold: int) -> None:
        self.threshold = threshold
        self.index: faiss.IndexBinary = faiss.IndexBinaryFlat(_WIDTH)
        if threshold // _BANDS <= _MOST_FLIPS:
            self.index = faiss.IndexBinaryMultiHash(_WIDTH, _BANDS, _WIDTH // _BANDS)
            self.index.nflip = threshold // _BANDS
        self.items = np.zeros(0, dtype=np.int64)

    def add(self, items: np.ndarray, hashes: np.ndarray) -> None:
        """Further exemplars; `items` ascend from call to call."""
        if len(items):
            self.index.add(_rows(hashes))
            self.items = np.concatenate([self.items, items])

    def first_near(self, looks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(b,) first exemplar within the threshold of a row's hashes, -1: none; (b,) distance."""
        best, distance = np.full(len(looks), -1), np.zeros(len(looks), dtype=np.int64)
        queries, bits, places = [], [], []
        for look in looks.T:
            limits, found, items = self.index.range_search(_rows(look), self.threshold + 1)
            queries.append(np.searchsorted(limits[1:], np.arange(len(found)), side="right"))
            bits.append(found)
            places.append(items)
        query, bit, place = (np.concatenate(parts) for parts in (queries, bits, places))
        order = np.lexsort((bit, place, query))
        near, first = np.unique(query[order], return_index=True)
        best[near] = self.items[place[order[first]]]
        distance[near] = bit[order[first]]
        return best, distance


def _rows(hashes: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(hashes).view(np.uint8).reshape(-1, _WIDTH // 8)
