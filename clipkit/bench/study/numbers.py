"""The numbers of a study: every seed, the mean, and the paired difference to the baselines.

A difference is taken per test item: the mean over seeds of (row - baseline), whose interval comes
from drawing items, whole clusters at once. It says how sure the items make us about these seeds;
that other seeds agree is what the single seeds show. A metric that is no mean of items (a distance
of centroids) has an interval over seeds instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

from clipkit.bench.study.definition import Metric, Study
from clipkit.bench.study.stored import Results, Value
from clipkit.errors import DataError
from clipkit.eval.base import Column
from clipkit.eval.intervals import Interval
from clipkit.eval.paired import difference, match

POOLED = "all cases"


@dataclass(frozen=True)
class Gap:
    """A row against a baseline.

    Attributes:
        value: Row minus baseline, mean over seeds.
        interval: 95 %; None where there is nothing to draw from.
        over: "items", or "seeds" where the metric is no mean of items.
        seeds: Seed -> difference.
    """

    value: float
    interval: Interval | None
    over: str
    seeds: dict[int, float]

    @property
    def same_sign(self) -> int:
        """Seeds whose difference has the sign of the mean."""
        return sum(d * self.value > 0 for d in self.seeds.values())


@dataclass(frozen=True)
class Cell:
    """One metric of one row.

    Attributes:
        metric: Its title.
        case: "" where there are no cases, POOLED for all of them.
        row: Name.
        better: "higher" or "lower".
        n: Test items, None for a metric that is no mean of items.
        mean: Over seeds.
        seeds: Seed -> value.
        gaps: Baseline -> difference.
    """

    metric: str
    case: str
    row: str
    better: str
    n: int | None
    mean: float
    seeds: dict[int, float]
    gaps: dict[str, Gap] = field(default_factory=dict)


def cells(study: Study, results: Results) -> list[Cell]:
    """All that can be tabulated from the results that are there.

    Raises:
        DataError: A result lacks a metric, or rows were evaluated on different items.
    """
    parts: dict[str, tuple[str, ...]] = {case: (case,) for case in study.cases}
    if len(parts) > 1:
        parts[POOLED] = tuple(study.cases)
    found = []
    for metric in study.metrics:
        for case, members in parts.items():
            values = {
                row: {
                    seed: value
                    for seed in study.seeds
                    if (value := results.value(metric, row, members, seed)) is not None
                }
                for row in study.rows
            }
            found += _cells_of(study, metric, case, values)
    return found


def _cells_of(
    study: Study, metric: Metric, case: str, values: Mapping[str, Mapping[int, Value]]
) -> list[Cell]:
    found = []
    for row, own in values.items():
        if not own:
            continue
        where = f"{metric.title}, {row}"
        whole = mean_of(own, where)
        gaps = {}
        for base in study.baseline:
            shared = {s: v for s, v in own.items() if s in values[base]}
            if base != row and shared:
                other = {s: values[base][s] for s in shared}
                gaps[base] = gap(shared, other, f"{where} and {base}")
        seeds = {s: _number(v) for s, v in own.items()}
        n = len(whole.values) if isinstance(whole, Column) else None
        mean = float(np.mean(list(seeds.values())))
        found.append(Cell(metric.title, case, row, metric.better, n, mean, seeds, gaps))
    return found


def mean_of(values: Mapping[int, Value], where: str) -> Value:
    """Per item the mean over seeds; of numbers, their mean.

    Raises:
        DataError: The seeds have different items; named by `where`.
    """
    columns = [v for v in values.values() if isinstance(v, Column)]
    if len(columns) < len(values):
        return float(np.mean([_number(v) for v in values.values()]))
    first = columns[0]
    rows = []
    for other in columns:
        place = {key: i for i, key in enumerate(other.keys)}
        if place.keys() != set(first.keys) or len(place) < len(other.keys):
            raise DataError(f"{where}: seeds were evaluated on different items; evaluate again")
        rows.append(other.values[[place[key] for key in first.keys]])
    return Column(first.keys, np.mean(rows, axis=0), first.clusters, first.groups)


def gap(row: Mapping[int, Value], base: Mapping[int, Value], where: str) -> Gap:
    """Row minus baseline over the same seeds.

    Raises:
        DataError: They have different items; named by `where`.
    """
    seeds = {s: _number(row[s]) - _number(base[s]) for s in row}
    a, b = mean_of(base, where), mean_of(row, where)
    if not (isinstance(a, Column) and isinstance(b, Column)):
        value, interval = _over_seeds(list(seeds.values()))
        return Gap(value, interval, "seeds", seeds)
    pairs = match(a, b)
    if pairs.only_a or pairs.only_b:
        raise DataError(f"{where}: were evaluated on different items; evaluate both alike")
    found = difference(pairs)
    return Gap(found.value, found.interval, "items", seeds)


def _over_seeds(values: Sequence[float]) -> tuple[float, Interval | None]:
    """Mean, and the interval of a t-test."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return mean, (mean - half, mean + half)


def _number(value: Value) -> float:
    return value.mean if isinstance(value, Column) else value
