"""Exemplars are those of the plain greedy loop, whatever the block and the search."""

import numpy as np
import pytest

from data_tools.dedup.hamming import distances, exemplars


def bits(a: int, b: int) -> int:
    return bin(int(a) ^ int(b)).count("1")


def slow(hashes, threshold, mirrored=None):
    """Take the first that is left, delete what is near it, repeat."""
    left, of, distance = list(range(len(hashes))), [-1] * len(hashes), [0] * len(hashes)
    while left:
        first, *rest = left
        left = []
        for item in rest:
            looks = [hashes[item]] if mirrored is None else [hashes[item], mirrored[item]]
            far = min(bits(hashes[first], look) for look in looks)
            if far <= threshold:
                of[item], distance[item] = first, far
            else:
                left.append(item)
    return of, distance


def near_hashes(seed: int, count: int) -> np.ndarray:
    """Few centres, each item some flipped bits away: all distances occur."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 1 << 63, 6, dtype=np.uint64) * np.uint64(2)
    items = centres[rng.integers(0, 6, count)]
    for _ in range(8):
        flips = np.uint64(1) << rng.integers(0, 64, count).astype(np.uint64)
        items = np.where(rng.random(count) < 0.6, items ^ flips, items)
    return items


def test_distances_are_differing_bits() -> None:
    a, b = near_hashes(0, 20), near_hashes(1, 30)
    assert distances(a, b).tolist() == [[bits(x, y) for y in b] for x in a]
    ends = np.array([0, 2**64 - 1], dtype=np.uint64)
    assert distances(ends, ends).tolist() == [[0, 64], [64, 0]]


@pytest.mark.parametrize("threshold", [0, 1, 2, 5, 6, 7, 8, 12, 30, 63, 64])
@pytest.mark.parametrize("block", [7, 1000])
def test_the_greedy_choice(threshold: int, block: int) -> None:
    hashes = np.concatenate([near_hashes(2, 150), near_hashes(2, 20)])
    for mirrored in (None, near_hashes(3, 170), near_hashes(2, 170)[::-1].copy()):
        of, distance = exemplars(hashes, threshold, mirrored, block)
        expected = slow(hashes, threshold, mirrored)
        assert (of.tolist(), distance.tolist()) == expected


def test_thresholds_at_the_ends_and_distances_of_what_stays() -> None:
    distinct = np.unique(near_hashes(4, 100))
    assert (exemplars(distinct, 0)[0] < 0).all()
    twice = np.concatenate([distinct, distinct])
    assert (exemplars(twice, -1)[0] < 0).all()
    assert exemplars(twice, 0)[0].tolist() == [-1] * len(distinct) + list(range(len(distinct)))
    assert exemplars(distinct, 64)[0].tolist() == [-1] + [0] * (len(distinct) - 1)
    for threshold in (3, 6):
        kept = distinct[exemplars(distinct, threshold, block=9)[0] < 0]
        apart = distances(kept, kept)[np.triu_indices(len(kept), 1)]
        assert apart.min() > threshold
    assert exemplars(distinct[:0], 6)[0].tolist() == []
