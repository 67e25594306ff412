"""What a report says above the single results: its checkpoints, the summary, the trends."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from clipkit.eval import plots
from clipkit.eval.plain_text import number
from clipkit.eval.results import StoredResult, is_number

_SIDE_BY_SIDE = 4  # checkpoints up to which the summary shows all, not just each run's newest
_PANELS = 3  # metrics a trend shows
_MAIN = (
    "acc1",
    "mean_per_class_recall",
    "image_retrieval_recall@1",
    "text_retrieval_recall@1",
    "mean_average_precision",
    "lp_acc1",
    "knn_acc1",
    "text_acc",
    "image_acc",
    "acc",
    "ndcg@10",
    "centroid_gap",
    "rmg",
    "ece",
    "ece_mass",
    "fitted_ece_mass",
)
_ASIDE = ("n", "nan_rate", "tie_rate")


@dataclass(frozen=True)
class Bar:
    """An interval as a bar, all in per cent of the bar's track.

    Attributes:
        start, width: Of the interval.
        at: Of the value.
    """

    start: float
    width: float
    at: float


@dataclass(frozen=True)
class Value:
    """A number as a table shows it.

    Attributes:
        text: The number.
        interval: Its 95 % interval, or "".
        bar: The interval drawn.
        chance: What guessing gives, or "".
    """

    text: str
    interval: str = ""
    bar: Bar | None = None
    chance: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """One evaluated set of weights.

    Attributes:
        name: Of its folder of results.
        step: Of training, if known.
        weights: Hash of the weights, "" if the results do not say.
    """

    name: str
    step: int | None
    weights: str

    @cached_property
    def run(self) -> str:
        """The name without a step at its end, the same for all checkpoints of a run."""
        return re.sub(r"[\W_]*step[\W_]*\d+$", "", self.name) or self.name

    @property
    def label(self) -> str:
        """Name and step."""
        named = self.step is None or self.run != self.name
        return self.name if named else f"{self.name} step {self.step}"


@dataclass(frozen=True)
class SummaryRow:
    """One metric of one data set over all checkpoints.

    Attributes:
        metric: Its name.
        n: Samples it rests on; several numbers where the checkpoints differ.
        values: One per checkpoint; None where it has no such result.
        overlap: "overlap" or "apart" for exactly two checkpoints with intervals, else "".
        main: Whether it is one of the kind's main metrics.
    """

    metric: str
    n: str
    values: list[Value | None]
    overlap: str
    main: bool


@dataclass(frozen=True)
class SummaryGroup:
    """All metrics of one task on one data set."""

    dataset: str
    kind: str
    rows: list[SummaryRow]


@dataclass(frozen=True)
class Trend:
    """A task on a data set over the steps of a run; `picture` is a data URI."""

    dataset: str
    kind: str
    picture: str
    metrics: str


def checkpoint_of(result: StoredResult) -> Checkpoint:
    """Which weights a result belongs to."""
    step = result.data.get("step")
    known = isinstance(step, int) and not isinstance(step, bool)
    return Checkpoint(
        result.model, step if known else None, str(result.data.get("weights_hash") or "")
    )


def last_given(results: Iterable[StoredResult]) -> list[StoredResult]:
    """The results, one per checkpoint, data set and kind: the last given."""
    found: dict[tuple[Any, ...], StoredResult] = {}
    for result in results:
        key = (checkpoint_of(result), result.dataset, result.kind)
        found.pop(key, None)
        found[key] = result
    return list(found.values())


def by_data_set(results: Sequence[StoredResult]) -> list[StoredResult]:
    """Results of a data set together, within it those of a task, else in the order given."""
    sets = list(dict.fromkeys(r.dataset for r in results))
    kinds = list(dict.fromkeys((r.dataset, r.kind) for r in results))
    return sorted(results, key=lambda r: (sets.index(r.dataset), kinds.index((r.dataset, r.kind))))


def newest(results: Sequence[StoredResult]) -> list[StoredResult]:
    """Of each run's results for a data set and kind, those of its last step."""
    last: dict[tuple[str, str, str], int] = {}
    for r in results:
        last[_line(r)] = max(last.get(_line(r), -1), _step(r))
    return [r for r in results if _step(r) == last[_line(r)]]


def labels(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """A name for each, with its weights' hash where names alone would not tell them apart."""
    plain = [c.label for c in checkpoints]
    return [
        f"{name} ({c.weights[:8]})" if plain.count(name) > 1 else name
        for name, c in zip(plain, checkpoints)
    ]


def side_by_side(results: Sequence[StoredResult]) -> list[StoredResult]:
    """What the summary shows: everything of a few checkpoints, else each run's newest."""
    few = len({checkpoint_of(r) for r in results}) <= _SIDE_BY_SIDE
    return list(results) if few else newest(results)


def facts(results: Sequence[StoredResult]) -> dict[str, str]:
    """What a checkpoint's results say about it, title -> text; several texts where they differ."""
    fields = {
        "architecture": "model",
        "checkpoint": "pretrained",
        "step": "step",
        "precision": "precision",
        "versions": "versions",
        "evaluated": "date",
    }
    out = {}
    for title, key in fields.items():
        texts = dict.fromkeys(_flat(r.data.get(key)) for r in results)
        out[title] = " / ".join(t for t in texts if t)
    return out


def main_metrics(result: StoredResult) -> list[str]:
    """The few metrics that stand for a result: the field's usual ones, else its first."""
    names = [name for name in _MAIN if name in result.metrics]
    others = [name for name in result.metrics if name not in _ASIDE]
    return (names or others)[:_PANELS]


def summarise(
    results: Sequence[StoredResult], checkpoints: Sequence[Checkpoint]
) -> list[SummaryGroup]:
    """Data set x metric x checkpoint, in the order of the results."""
    cells = {(r.dataset, r.kind, checkpoint_of(r)): r for r in results}
    groups = []
    for dataset, kind in dict.fromkeys((r.dataset, r.kind) for r in results):
        row = [cells.get((dataset, kind, c)) for c in checkpoints]
        there = [r for r in row if r is not None]
        names = dict.fromkeys(name for r in there for name in r.metrics)
        shown = [m for m in names if m not in ("n", "captions", "nan_rate")]
        groups.append(SummaryGroup(dataset, kind, [_summary_row(m, row) for m in shown]))
    return groups


def value_of(result: StoredResult, metric: str, span: tuple[float, float] = (0.0, 1.0)) -> Value:
    """A metric of a result; its bar lies on a track over `span`."""
    low, high = result.intervals.get(metric, (math.nan, math.nan))
    return value(result.metrics[metric], low, high, span)


def with_chance(result: StoredResult, metric: str) -> Value:
    """`value_of`, with the level of chance where the result's details give it."""
    details = result.data.get("details")
    levels = details.get("chance") if isinstance(details, dict) else None
    level = levels.get(metric) if isinstance(levels, dict) else None
    return replace(value_of(result, metric), chance=_decimals(level) if is_number(level) else "")


def value(found: float, low: float, high: float, span: tuple[float, float] = (0.0, 1.0)) -> Value:
    """A number with its interval (NaN: none)."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return Value(_decimals(found))
    start, end = span
    scale = 100 / ((end - start) or 1.0)
    left, right, at = ((min(max(x, start), end) - start) * scale for x in (low, high, found))
    return Value(
        _decimals(found),
        f"{_decimals(low)} – {_decimals(high)}",
        Bar(round(left, 2), round(right - left, 2), round(at, 2)),
    )


def trends(results: Sequence[StoredResult]) -> list[Trend]:
    """A picture for every task and data set that a run has at two steps or more."""
    out = []
    for dataset, kind in dict.fromkeys((r.dataset, r.kind) for r in results):
        own = [r for r in results if (r.dataset, r.kind) == (dataset, kind) and _step(r) >= 0]
        runs: dict[str, list[StoredResult]] = {}
        for result in sorted(own, key=_step):
            runs.setdefault(checkpoint_of(result).run, []).append(result)
        runs = {k: v for k, v in runs.items() if len({_step(r) for r in v}) > 1}
        if not runs:
            continue
        metrics = main_metrics(next(iter(runs.values()))[0])
        panels = [(m, [_trend_line(name, rs, m) for name, rs in runs.items()]) for m in metrics]
        out.append(Trend(dataset, kind, plots.trend(panels), ", ".join(metrics)))
    return out


def _trend_line(name: str, results: list[StoredResult], metric: str) -> plots.Line:
    own = [r for r in results if metric in r.metrics]
    ends = [r.intervals.get(metric, (math.nan, math.nan)) for r in own]
    return plots.Line(
        name,
        [_step(r) for r in own],
        [r.metrics[metric] for r in own],
        [low for low, _ in ends],
        [high for _, high in ends],
    )


def _summary_row(metric: str, row: Sequence[StoredResult | None]) -> SummaryRow:
    there = [r for r in row if r is not None and metric in r.metrics]
    ends = [r.intervals[metric] for r in there if metric in r.intervals]
    every = [x for pair in ends for x in pair] + [r.metrics[metric] for r in there]
    shares = all(0 <= x <= 1 for x in every)
    span = (0.0, 1.0) if shares else (min(every, default=0.0), max(every, default=0.0))
    alone = not shares and len(there) < 2  # a bar over its own range says nothing
    counts = dict.fromkeys(_n(r, metric) for r in there)
    overlap = ""
    if len(row) == 2 and len(ends) == 2:
        (low, high), (other_low, other_high) = ends
        overlap = "overlap" if low <= other_high and other_low <= high else "apart"
    values = [value_of(r, metric, span) if r and metric in r.metrics else None for r in row]
    return SummaryRow(
        metric,
        " / ".join(counts),
        [replace(v, bar=None) if v and alone else v for v in values],
        overlap,
        bool(there) and metric in main_metrics(there[0]),
    )


def _n(result: StoredResult, metric: str) -> str:
    n = result.data.get("counts", {}).get(metric, result.metrics.get("n"))
    return "" if n is None else number(n)


def _decimals(value: float) -> str:
    return number(value) if isinstance(value, int) else f"{value:.4f}"


def _line(result: StoredResult) -> tuple[str, str, str]:
    return checkpoint_of(result).run, result.dataset, result.kind


def _step(result: StoredResult) -> int:
    step = checkpoint_of(result).step
    return -1 if step is None else step


def _flat(entry: Any) -> str:
    if isinstance(entry, dict):
        return ", ".join(f"{k} {_flat(v)}" for k, v in entry.items())
    if entry is None or isinstance(entry, str):
        return entry or ""
    return json.dumps(entry, ensure_ascii=False)
