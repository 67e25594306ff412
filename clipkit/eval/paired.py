"""Two models on the same samples: the paired difference, its interval, and whether it is real.

Pairing takes out what both models share (hard and easy samples): two models at 70 % that disagree
on 10 % of the samples have half the standard error of two independent runs.

Shapes: n pairs, C clusters, G groups, R resamples.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from clipkit.eval.base import Column
from clipkit.eval.intervals import (
    RESAMPLES,
    Interval,
    bootstrap_means,
    group_mean,
    numbered,
    wilson,
)

_FEW = 64  # different clusters up to which a resample is one multinomial draw


@dataclass
class Pairs:
    """One metric of two models over the samples both have.

    Attributes:
        a: (n,) values of A, float64.
        b: (n,) values of B.
        clusters: (n,) 0 .. C - 1, drawn together; None where every pair stands alone.
        groups: (n,) 0 .. G - 1 of a macro average, or None.
        rows: (n,) which entry of A's column each pair is.
        only_a: Samples that B lacks.
        only_b: Samples that A lacks.
        same_groups: Whether both sides group and cluster the samples alike; A's are used.
    """

    a: np.ndarray
    b: np.ndarray
    clusters: np.ndarray | None
    groups: np.ndarray | None
    rows: np.ndarray
    only_a: int = 0
    only_b: int = 0
    same_groups: bool = True

    def take(self, kept: np.ndarray) -> Pairs:
        """The pairs at indices `kept`."""
        clusters, groups = _dense(self.clusters, kept), _dense(self.groups, kept)
        return Pairs(self.a[kept], self.b[kept], clusters, groups, self.rows[kept])

    @property
    def binary(self) -> bool:
        """Whether every value is 0 or 1."""
        return bool(np.isin(self.a, (0.0, 1.0)).all() and np.isin(self.b, (0.0, 1.0)).all())


@dataclass(frozen=True)
class Difference:
    """B - A of one metric.

    Attributes:
        a: Mean of A over the pairs.
        b: Mean of B over the pairs.
        value: b - a.
        interval: (low, high) of the difference at 95 %.
        n: Pairs.
        p: Two-sided p-value of "there is no difference".
        test: "mcnemar_exact" or "paired_bootstrap".
        only_a: Pairs where only A has a 1; None where values are not 0 or 1.
        only_b: Pairs where only B has a 1.
    """

    a: float
    b: float
    value: float
    interval: Interval
    n: int
    p: float
    test: str
    only_a: int | None = None
    only_b: int | None = None


def match(a: Column, b: Column) -> Pairs:
    """Pair two columns by (unit, id), in A's order.

    Raises:
        ValueError: An id stands twice in one column; the message is the id.
    """
    for keys in (a.keys, b.keys):
        if len(set(keys)) < len(keys):
            raise ValueError("/".join(Counter(keys).most_common(1)[0][0]))
    place = {key: i for i, key in enumerate(b.keys)}
    in_a = np.array([i for i, key in enumerate(a.keys) if key in place], dtype=np.int64)
    in_b = np.array([place[a.keys[i]] for i in in_a], dtype=np.int64)
    same = all(
        _partition(x, in_a) == _partition(y, in_b)
        for x, y in ((a.clusters, b.clusters), (a.groups, b.groups))
    )
    clusters, groups = _dense(a.clusters, in_a), _dense(a.groups, in_a)
    left_a, left_b = len(a.keys) - len(in_a), len(b.keys) - len(in_b)
    return Pairs(a.values[in_a], b.values[in_b], clusters, groups, in_a, left_a, left_b, same)


def _dense(labels: np.ndarray | None, kept: np.ndarray) -> np.ndarray | None:
    """Labels of the kept samples, numbered anew without gaps."""
    return None if labels is None else np.unique(labels[kept], return_inverse=True)[1]


def _partition(labels: np.ndarray | None, kept: np.ndarray) -> list[int]:
    """Labels by first occurrence, so that two numberings of one partition are equal."""
    own = np.arange(len(kept)) if labels is None else labels[kept]
    return numbered(own.tolist()).tolist()


def difference(pairs: Pairs, *, seed: int = 0) -> Difference:
    """B - A with its paired bootstrap interval and p-value.

    The p-value is McNemar's exact one (binomial on the discordant pairs) where samples are 0 or 1
    and stand alone, else a t-test with the bootstrap's standard error and C - 1 degrees of freedom.
    """
    a, b = group_mean(pairs.a, pairs.groups), group_mean(pairs.b, pairs.groups)
    n, gap = len(pairs.a), pairs.b - pairs.a
    clusters = np.arange(n) if pairs.clusters is None else pairs.clusters
    num_clusters = int(clusters.max()) + 1
    draws = bootstrap_differences(gap, pairs.clusters, pairs.groups, seed=seed)
    both = np.concatenate([pairs.a, pairs.b, [0.0]])
    reach = float(np.ptp(both)) or 1.0
    if np.ptp(draws) <= 1e-9 * reach:
        interval = _unanimous(b - a, num_clusters, reach)
    else:
        low, high = np.percentile(draws, [2.5, 97.5]).tolist()
        interval = (low, high)
    only_a, only_b = int((gap == -1).sum()), int((gap == 1).sum())
    counts = (only_a, only_b) if pairs.binary else (None, None)
    if pairs.binary and num_clusters == n and pairs.groups is None:
        return Difference(
            a, b, b - a, interval, n, mcnemar(only_a, only_b), "mcnemar_exact", *counts
        )
    differing = len(np.unique(clusters[gap != 0]))
    p = _t_test(b - a, float(draws.std(ddof=1)), num_clusters, differing)
    return Difference(a, b, b - a, interval, n, p, "paired_bootstrap", *counts)


def bootstrap_differences(
    gap: np.ndarray,
    clusters: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> np.ndarray:
    """(R,) means of resampled differences, both models always on the same draw.

    Args:
        gap: (n,) B - A per sample.
        clusters: (n,) 0 .. C - 1, or None.
        groups: (n,) 0 .. G - 1 of a macro average, or None.
        resamples: R.
        seed: Of the draws.
    """
    own = np.arange(len(gap)) if clusters is None else clusters
    totals = np.stack([np.bincount(own, weights=gap), np.bincount(own)], axis=1)  # (C, 2)
    if groups is None:
        cells, counts = np.unique(totals, axis=0, return_counts=True)
        if len(cells) <= _FEW:  # equal clusters need not be told apart: the same law, far faster
            rng = np.random.default_rng(seed)
            drawn = rng.multinomial(len(totals), counts / len(totals), size=resamples)  # (R, K)
            return (drawn @ cells[:, 0]) / (drawn @ cells[:, 1])
    return bootstrap_means(gap, clusters, groups, resamples=resamples, seed=seed)


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p-value of McNemar 1947: are the discordant pairs a fair coin?"""
    discordant = only_a + only_b
    return float(stats.binomtest(only_a, discordant).pvalue) if discordant else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of Holm 1979: below 5 %, the family's chance of one false claim is 5 %."""
    adjusted, reached = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        reached = max(reached, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = reached
    return adjusted


def _unanimous(value: float, clusters: int, reach: float) -> Interval:
    """Interval where all clusters differ by the same: a bootstrap of them claims certainty.

    A share of clusters too rare to be seen could differ by up to `reach`, the span of 0 and all
    values, either way. For 0/1 samples this is the score interval of Tango 1998.
    """
    rare = wilson(0.0, clusters)[1]
    return value - rare * (reach + value), value + rare * (reach - value)


def _t_test(value: float, error: float, clusters: int, differing: int) -> float:
    """Two-sided p-value, at least that of flipping the sign of each differing cluster.

    Two samples that differ by the same amount have no spread, yet prove nothing: the smallest
    p-value that k differing clusters can give is 2 ^ (1 - k).
    """
    if value == 0.0 or clusters < 2:
        return 1.0
    t = abs(value) / error if error > 0 else math.inf
    return min(1.0, max(float(2 * stats.t.sf(t, clusters - 1)), 2.0 ** (1 - differing)))
