"""95 % intervals: Wilson for shares, a bootstrap over clusters for means, a jackknife for the rest.

Every draw is seeded: the same data give the same interval.
Shapes: n samples, C clusters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

import numpy as np

Interval = tuple[float, float]
Z = 1.959964  # of a normal distribution, 97.5 % below
RESAMPLES = 1000


def wilson(share: float, n: int, z: float = Z) -> Interval:
    """Interval of a share over n independent samples, Wilson 1927."""
    if n == 0:
        return 0.0, 1.0
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return (centre - half if share > 0 else 0.0), (centre + half if share < 1 else 1.0)


def numbered(labels: Sequence[Hashable]) -> np.ndarray:
    """(n,) labels -> (n,) numbers 0 .. C - 1, by first occurrence."""
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(label, len(seen)) for label in labels], dtype=np.int64)


def group_mean(values: np.ndarray, groups: np.ndarray | None) -> float:
    """Mean of (n,) values, or the mean over groups 0 .. G - 1 of each group's mean."""
    if groups is None:
        return float(values.mean())
    return float((np.bincount(groups, weights=values) / np.bincount(groups)).mean())


def bootstrap_means(
    values: np.ndarray,
    clusters: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> np.ndarray:
    """Means of resampled data, whole clusters drawn at once (Field & Welsh 2007).

    Args:
        values: (n,) numbers.
        clusters: (n,) 0 .. C - 1, what is drawn together (captions of one image); None: alone.
        groups: (n,) 0 .. G - 1: the statistic is the mean over groups of the group's mean, over
            the groups that a draw contains.
        resamples: Draws.
        seed: Of the draws.

    Returns:
        (resamples,) means.
    """
    n = len(values)
    clusters = np.arange(n) if clusters is None else clusters
    count = int(clusters.max()) + 1
    rng = np.random.default_rng(seed)
    sums = np.bincount(clusters, weights=values, minlength=count)
    sizes = np.bincount(clusters, minlength=count)
    out = np.empty(resamples)
    for r in range(resamples):
        drawn = np.bincount(rng.integers(0, count, count), minlength=count)  # (C,)
        if groups is None:
            out[r] = (drawn @ sums) / (drawn @ sizes)
            continue
        weight = drawn[clusters]
        per_group = np.bincount(groups, weights=weight)
        total = np.bincount(groups, weights=weight * values)
        there = per_group > 0
        out[r] = (total[there] / per_group[there]).mean()
    return out


def mean_interval(
    values: np.ndarray,
    clusters: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> Interval:
    """Interval of a mean: Wilson for independent 0/1 values, else the percentile bootstrap.

    A bootstrap of equal values or of one cluster would claim certainty. It is answered with
    Wilson's interval over the clusters, which holds for values within 0 .. 1; other values of one
    cluster, and equal ones that are neither 0 nor 1, give a point.
    """
    count = len(values) if clusters is None else int(clusters.max()) + 1
    binary = bool(np.isin(values, (0.0, 1.0)).all())
    equal = bool((values == values[0]).all())
    value = float(values[0]) if equal else group_mean(values, groups)
    alone = groups is None and count == len(values)
    share = binary or (count == 1 and bool(((values >= 0) & (values <= 1)).all()))
    if share and (alone or equal or count == 1):
        return wilson(value, count)
    if equal or count == 1:
        return value, value
    low, high = np.percentile(
        bootstrap_means(values, clusters, groups, seed=seed), [2.5, 97.5]
    ).tolist()
    return low, high


def jackknife(
    statistic: Callable[[np.ndarray], float], n: int, groups: int = 30, seed: int = 0
) -> Interval:
    """Interval of any smooth statistic: leave out each of `groups` blocks in turn (Shao & Wu 1989).

    Args:
        statistic: Sorted indices of the samples kept -> number.
        n: Samples.
        groups: Blocks.
        seed: Of the blocks.
    """
    groups = min(groups, n)
    order = np.random.default_rng(seed).permutation(n)
    whole = statistic(np.arange(n))
    if groups < 2:
        return whole, whole
    blocks = np.array_split(order, groups)
    without = np.array([statistic(np.setdiff1d(np.arange(n), block)) for block in blocks])
    half = Z * math.sqrt((groups - 1) / groups * float(((without - without.mean()) ** 2).sum()))
    return whole - half, whole + half


def jackknife_share(
    statistic: Callable[[np.ndarray], float], n: int, size: int | None = None
) -> Interval:
    """`jackknife` of a statistic within 0 .. 1.

    Equal values would claim certainty; they are answered with Wilson's interval over `size` samples
    (None: n).
    """
    low, high = jackknife(statistic, n)
    if low == high:
        return wilson(min(1.0, max(0.0, low)), n if size is None else size)
    return max(0.0, low), min(1.0, high)
