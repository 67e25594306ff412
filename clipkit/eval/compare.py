"""Two models on the same data sets: which differences are real.

Results are matched by (data set, kind), samples by (unit, id). Holm's correction keeps the chance
of any false verdict in a family of tests at 5 %. The families: the metrics of whole sets, the
diagnostics of whole sets (tie rates, shares), the parts of one metric of one data set.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from clipkit.config.parts import suggest
from clipkit.errors import ConfigError, DataError
from clipkit.eval.base import Record, column
from clipkit.eval.intervals import Interval
from clipkit.eval.paired import Pairs, difference, holm, match
from clipkit.eval.results import StoredResult, read_results

LEVEL = 0.05
PARTS = ("class", "tags")  # fields of the records whose values split a set
# what belongs to the model or follows from it may differ; every other fact should be the same
_OWN_FACTS = {
    "C", "converged", "counts", "data", "dataset", "details", "intervals", "iterations", "key",
    "kind", "macro", "metrics", "model", "model_name", "num_discriminants", "pretrained",
    "samples_sha256", "seconds", "step", "task", "tokenizer_hash", "transform_hash", "weights_hash",
}  # fmt: skip
_LOWER_WORDS = {"tie", "nan", "ece", "mce", "brier", "nll", "error", "rmse", "loss", "fpr", "fpr95"}
_NEITHER_WORDS = {"share", "confidence", "predicted", "cosine", "distance", "gap", "uniformity"}


@dataclass
class Row:
    """One metric of one data set on both sides.

    Attributes:
        dataset: Name of the data set.
        kind: Kind of the evaluator.
        metric: Name of the metric.
        part: Class or tag, "" for the whole set.
        n: Pairs; for a metric that is no mean, the smaller n of the two results.
        a: Value of A, over the pairs.
        b: Value of B, over the pairs.
        difference: b - a.
        interval: (low, high) of the difference at 95 %; None for a metric that is no mean.
        interval_a: (low, high) that A's result gives, whole sets only.
        interval_b: (low, high) that B's result gives.
        only_a: Samples where only A has a 1, for 0/1 metrics.
        only_b: Samples where only B has a 1.
        test: "mcnemar_exact", "paired_bootstrap" or, where there is no test, "intervals".
        p: p-value of the test.
        p_holm: The same, corrected for all rows of its family.
        same_as: Metric of the task with the very same values, which is tested once for both.
        verdict: "better", "worse" (B than A), "-" where no difference is shown; "higher", "lower"
            where neither is better; where there is no test, whether the two intervals "overlap" or
            lie "apart".
    """

    dataset: str
    kind: str
    metric: str
    part: str
    n: int
    a: float
    b: float
    difference: float
    interval: Interval | None = None
    interval_a: Interval | None = None
    interval_b: Interval | None = None
    only_a: int | None = None
    only_b: int | None = None
    test: str = "intervals"
    p: float | None = None
    p_holm: float | None = None
    same_as: str = ""
    verdict: str = ""


@dataclass
class Comparison:
    """Rows of the table, and what to beware of.

    Attributes:
        a: Name of model A.
        b: Name of model B.
        rows: One per metric, or per metric and part.
        warnings: Lines for the reader.
    """

    a: str
    b: str
    rows: list[Row] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and strings."""
        return {"level": LEVEL, **asdict(self)}


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of the metric is the better one, by its name."""
    return bool(_LOWER_WORDS & _words(metric)) or metric.endswith(("mean_rank", "median_rank"))


def is_tie_rate(metric: str) -> bool:
    """Whether the metric counts ties, by its name."""
    return "tie" in _words(metric)


def _is_diagnostic(metric: str) -> bool:
    """Whether the metric describes a model more than it rates it."""
    return is_tie_rate(metric) or bool(_NEITHER_WORDS & _words(metric))


def _words(metric: str) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", metric.lower()))


def read_model(place: str | Path) -> list[StoredResult]:
    """The results of the one model at `place`.

    Raises:
        DataError: Nothing there, or no results.
        ConfigError: Results of several models; lists their folders.
    """
    results = read_results(place)
    folders = sorted({str(r.path.parent) for r in results})
    if len(folders) > 1:
        shown = ", ".join(folders[:12]) + (", ..." if len(folders) > 12 else "")
        raise ConfigError(f"{place}: holds results of {len(folders)} models; name one: {shown}")
    return results


def compare(a: str | Path, b: str | Path, by: str | None = None) -> Comparison:
    """Compare the results at two places.

    Args:
        a: Result or folder of one model's results: what B is measured against.
        b: The same of the other model.
        by: "class" or "tags": a row for each of its values too.

    Raises:
        DataError: Nothing in common, or records that cannot be read or paired.
        ConfigError: Several models at a place, or no metric can be split by `by`.
    """
    if by is not None and by not in PARTS:
        raise ConfigError(f"--by '{by}': unknown{suggest(by, list(PARTS))}")
    left = {(r.dataset, r.kind): r for r in read_model(a)}
    right = {(r.dataset, r.kind): r for r in read_model(b)}
    found = Comparison(_name(left), _name(right))
    for side, own, other in (("A", left, right), ("B", right, left)):
        lost = [f"{dataset}/{kind}" for dataset, kind in own if (dataset, kind) not in other]
        if lost:
            found.warnings.append(f"only in {side}: {', '.join(lost)}")
    for key in (key for key in left if key in right):
        rows, warnings = compare_results(left[key], right[key], by=by)
        found.rows += rows
        found.warnings += warnings
    if not found.rows:
        raise DataError(f"{a} and {b} have no data set, task and metric in common")
    if by and not any(row.part for row in found.rows):
        raise ConfigError(f"--by {by}: no metric of these results can be split by it; leave it out")
    _judge(found.rows)
    return found


def _name(results: dict[tuple[str, str], StoredResult]) -> str:
    return next(iter(results.values())).model


def compare_results(
    a: StoredResult,
    b: StoredResult,
    *,
    metrics: Collection[str] | None = None,
    by: str | None = None,
) -> tuple[list[Row], list[str]]:
    """Rows of two results of one data set and kind, not yet judged.

    Args:
        a: What B is measured against.
        b: The other.
        metrics: Which metrics; None: all.
        by: Field of the records, a row for each of its values too.

    Returns:
        (rows, warnings)

    Raises:
        DataError: Records that cannot be read, or one id twice.
    """
    where = f"{a.dataset}/{a.kind}"
    records_a, records_b = a.records(), b.records()
    warnings = [f"{where}: {line}" for line in _other_facts(a.data, b.data)]
    chosen = [m for m in a.metrics if metrics is None or m in metrics]
    one_sided = [m for m in chosen if m not in b.metrics]
    one_sided += [m for m in b.metrics if m not in a.metrics and (metrics is None or m in metrics)]
    if one_sided:
        warnings.append(f"{where}: not on both sides: {', '.join(one_sided)}")
    rows: list[Row] = []
    leftovers, regrouped = defaultdict(list), []
    columns: dict[tuple[Any, ...], str] = {}
    for metric in (m for m in chosen if m in b.metrics):
        if a.macro.get(metric) != b.macro.get(metric):
            warnings.append(
                f"{where}: {metric} is averaged in two ways; its samples are not paired"
            )
        pairs = _pairs(a, b, records_a, records_b, metric)
        if pairs is None:
            rows += _unpaired(a, b, metric)
            continue
        if pairs.only_a or pairs.only_b:
            leftovers[len(pairs.a), pairs.only_a, pairs.only_b].append(metric)
        if not pairs.same_groups:
            regrouped.append(metric)
        if len(pairs.a):
            first = columns.setdefault(_content(records_a, metric, pairs), metric)
            own = list(_paired(a, b, records_a, metric, pairs, by))
            own[0].same_as = "" if first == metric else first
            rows += own
    for (n, only_a, only_b), names in leftovers.items():
        warnings.append(
            f"{where}: {n} samples paired, {only_a} only in A and {only_b} only in B are left out "
            f"({', '.join(names)})"
        )
    if regrouped:
        warnings.append(
            f"{where}: classes or clusters differ, A's are used ({', '.join(regrouped)})"
        )
    return rows, warnings


def _other_facts(a: dict[str, Any], b: dict[str, Any]) -> Iterator[str]:
    """What the two results rest on and is not the same."""
    facts_a, facts_b = dict(_flat(a)), dict(_flat(b))
    for name, value in facts_a.items():
        if name in facts_b and facts_b[name] != value:
            yield f"{name} differs: {str(value)[:40]} in A, {str(facts_b[name])[:40]} in B"


def _flat(facts: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in facts.items():
        if not prefix and name in _OWN_FACTS:
            continue
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif prefix.startswith("arguments.") or not isinstance(value, float):
            # a number with a fraction that nobody set is an outcome, e.g. a fitted temperature
            yield prefix + name, value


def _pairs(
    a: StoredResult, b: StoredResult, own: list[Record], other: list[Record], metric: str
) -> Pairs | None:
    """Pairs of a metric that is, on both sides, the same kind of mean of its records; else None."""
    macro = a.macro.get(metric)
    if macro != b.macro.get(metric):
        return None
    columns = []
    for result, records in ((a, own), (b, other)):
        if not any(metric in r["values"] for r in records):
            return None
        found = column(records, metric, macro)
        if not math.isclose(found.mean, result.metrics[metric], rel_tol=1e-6, abs_tol=1e-9):
            return None
        columns.append(found)
    try:
        return match(*columns)
    except ValueError as error:
        raise DataError(
            f"{a.path}, {b.path}: sample {error} stands twice; evaluate again"
        ) from None


def _paired(
    a: StoredResult,
    b: StoredResult,
    records: list[Record],
    metric: str,
    pairs: Pairs,
    by: str | None,
) -> Iterator[Row]:
    """The row of the whole set, then one for each value of `by`."""
    yield _row(a, metric, "", pairs, a.intervals.get(metric), b.intervals.get(metric))
    if by is None or a.macro.get(metric) == by:  # within one class a mean over classes is acc1
        return
    own = [r for r in records if metric in r["values"]]
    parts: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(pairs.rows.tolist()):
        value = own[row].get(by, [])
        for part in dict.fromkeys(map(str, value if isinstance(value, list) else [value])):
            parts[part].append(i)
    for part in sorted(parts):
        yield _row(a, metric, part, pairs.take(np.array(parts[part])))


def _row(
    result: StoredResult,
    metric: str,
    part: str,
    pairs: Pairs,
    interval_a: Interval | None = None,
    interval_b: Interval | None = None,
) -> Row:
    found = difference(pairs)
    return Row(
        result.dataset,
        result.kind,
        metric,
        part,
        found.n,
        found.a,
        found.b,
        found.value,
        found.interval,
        interval_a,
        interval_b,
        found.only_a,
        found.only_b,
        found.test,
        found.p,
    )


def _unpaired(a: StoredResult, b: StoredResult, metric: str) -> Iterator[Row]:
    """A metric that is no mean of records; a plain count, which has no interval, is no row."""
    own, other = a.intervals.get(metric), b.intervals.get(metric)
    if own is None or other is None:
        return
    apart = own[1] < other[0] or other[1] < own[0]
    left, right = float(a.metrics[metric]), float(b.metrics[metric])
    n = int(min(a.metrics.get("n", 0), b.metrics.get("n", 0)))
    row = Row(a.dataset, a.kind, metric, "", n, left, right, right - left, None, own, other)
    row.verdict = "apart" if apart else "overlap"
    yield row


def _content(records: list[Record], metric: str, pairs: Pairs) -> tuple[Any, ...]:
    """Equal for two metrics of one result where one test serves both."""
    own = np.array([i for i, r in enumerate(records) if metric in r["values"]])[pairs.rows]
    arrays = (own, pairs.a, pairs.b, pairs.clusters, pairs.groups)
    return _is_diagnostic(metric), *(None if x is None else x.tobytes() for x in arrays)


def _judge(rows: list[Row]) -> None:
    """Correct the p-values within each family and write the verdicts."""
    families: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        if row.p is not None and row.part:
            families[row.dataset, row.kind, row.metric].append(row)
        elif row.p is not None and not row.same_as:
            families[_is_diagnostic(row.metric)].append(row)
    corrected: dict[tuple[str, ...], float] = {}
    for family in families.values():
        for row, p in zip(family, holm([row.p or 0.0 for row in family])):
            corrected[row.dataset, row.kind, row.metric, row.part] = p
    for row in (row for row in rows if row.p is not None):
        name = row.metric if row.part else row.same_as or row.metric
        row.p_holm = p = corrected[row.dataset, row.kind, name, row.part]
        if p >= LEVEL:
            row.verdict = "-"
        elif _NEITHER_WORDS & _words(row.metric):
            row.verdict = "higher" if row.difference > 0 else "lower"
        else:
            better = (row.difference < 0) == lower_is_better(row.metric)
            row.verdict = "better" if better else "worse"
