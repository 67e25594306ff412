"""What every evaluator returns: metrics with n and interval, and the records they are means of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from clipkit.errors import ClipkitError
from clipkit.eval.intervals import Interval, group_mean, mean_interval, numbered

Record = dict[str, Any]


class NonFiniteResult(ClipkitError):
    """NaN or infinity in features or metrics; any number computed from it is meaningless."""

    exit_status = 5


@dataclass
class EvalResult:
    """Metrics of one task on one data set.

    A record is one sample: {"id", "values": {metric: number}} and, where there is such a thing,
    "unit" (what a sample is: "image" by default, "caption", "item", ...), "cluster" (samples drawn
    together in a bootstrap; its image), "class", "tags" (list), and anything else worth keeping
    ("predicted", "rank", ...). A metric that stands in `values` of records is their mean, or, when
    `macro` names a field, the mean over that field's values of the mean within each. `from_records`
    builds metrics, intervals and counts that way; other metrics are given beside them.

    Attributes:
        task: CLIP_benchmark's name of the task where it has one, else the evaluator's kind.
        dataset: Name of the data set.
        metrics: Name -> finite value; "n" is the number of samples.
        intervals: Metric -> (low, high) at 95 %.
        counts: Metric -> number of samples it rests on.
        records: Per-sample records, in the data set's order.
        macro: Metric -> field of the records over whose values it is averaged.
        details: More for the report: confusion, curves, examples. JSON-able.
        provenance: Folder, number of classes and templates, and the like. JSON-able.
    """

    task: str
    dataset: str
    metrics: dict[str, float]
    intervals: dict[str, Interval] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    macro: dict[str, str] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in self.metrics.items():
            if not math.isfinite(value):
                raise NonFiniteResult(
                    f"{self.dataset}/{self.task}: {name} is {value}; the model or data is broken"
                )

    @classmethod
    def from_records(
        cls,
        task: str,
        dataset: str,
        records: list[Record],
        *,
        macro: dict[str, str] | None = None,
        metrics: dict[str, float] | None = None,
        intervals: dict[str, Interval] | None = None,
        counts: dict[str, int] | None = None,
        **rest: Any,
    ) -> EvalResult:
        """Metrics, intervals and counts of the records; what is given besides comes on top.

        A metric given with an interval rests on all records unless `counts` says otherwise.
        """
        macro = macro or {}
        found, bounds, sizes = {}, {}, {}
        names = list(dict.fromkeys(name for r in records for name in r["values"]))
        for name in names:
            found[name], bounds[name], sizes[name] = metric_of(records, name, macro.get(name))
        return cls(
            task,
            dataset,
            {"n": len(records), "nan_rate": 0.0, **found, **(metrics or {})},
            {**bounds, **(intervals or {})},
            {**dict.fromkeys(intervals or {}, len(records)), **sizes, **(counts or {})},
            records,
            macro,
            **rest,
        )

    def to_json(self) -> dict[str, Any]:
        """CLIP_benchmark's keys, and ours beside them; without the records."""
        return {
            "dataset": self.dataset,
            "task": self.task,
            "metrics": self.metrics,
            "intervals": {k: list(v) for k, v in self.intervals.items()},
            "counts": self.counts,
            "macro": self.macro,
            "details": self.details,
            **self.provenance,
        }


@dataclass
class Column:
    """One metric's values over the records that have it.

    Attributes:
        keys: (n,) (unit, id) of each record.
        values: (n,) float64.
        clusters: (n,) numbers, or None where every record stands alone.
        groups: (n,) numbers of a macro average's groups, or None.
    """

    keys: list[tuple[str, str]]
    values: np.ndarray
    clusters: np.ndarray | None
    groups: np.ndarray | None

    @property
    def mean(self) -> float:
        """The metric."""
        return group_mean(self.values, self.groups)


def column(records: Sequence[Record], name: str, macro: str | None = None) -> Column:
    """The values of a metric, with what its interval needs."""
    own = [r for r in records if name in r["values"]]
    values = np.array([float(r["values"][name]) for r in own])
    keys = [(str(r.get("unit", "image")), str(r["id"])) for r in own]
    names = [r.get("cluster", r["id"]) for r in own]
    clusters = numbered(names) if len(set(names)) < len(names) else None
    groups = numbered([r[macro] for r in own]) if macro else None
    return Column(keys, values, clusters, groups)


def metric_of(
    records: Sequence[Record], name: str, macro: str | None
) -> tuple[float, Interval, int]:
    """(value, interval, n) of a metric over the records that have it."""
    found = column(records, name, macro)
    interval = mean_interval(found.values, found.clusters, found.groups)
    return found.mean, interval, len(found.values)
