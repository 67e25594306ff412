"""Gates: floors, ceilings and largest drops that the results of a model must keep.

A gate that matches nothing is red, so that a misspelt name cannot pass. For a metric that is
better when smaller (a tie rate, an error), a drop is a rise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from clipkit.config.load import read_yaml
from clipkit.config.parts import suggest
from clipkit.errors import ConfigError
from clipkit.eval.compare import LEVEL, Row, compare_results, lower_is_better, read_model
from clipkit.eval.intervals import Interval
from clipkit.eval.results import StoredResult

_STRICT = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Gate(BaseModel):
    """One entry of `gates`: which metrics, and what they must keep.

    Attributes:
        dataset: Name or glob of data sets.
        kind: Name or glob of evaluators.
        metric: Name or glob of metrics.
        min: The value must be at least this.
        max: The value must be at most this.
        use: Whether `min` and `max` hold the value itself or the end of its 95 % interval on
            their side: with "interval" the whole interval must clear them.
        max_drop: The value may be worse than the baseline's by this. Red if the drop is larger and
            real: the 95 % interval of the paired difference lies below 0 and, where there is a
            test, its p-value below 5 %.
        strict: Red unless the drop is shown to be at most `max_drop`: the whole interval of the
            paired difference must lie above -max_drop.
        lower_is_better: Which way is worse, where the metric's name does not tell.
    """

    model_config = _STRICT
    dataset: str = "*"
    kind: str = "*"
    metric: str
    min: float | None = None
    max: float | None = None
    use: Literal["value", "interval"] = "value"
    max_drop: float | None = Field(None, ge=0)
    strict: bool = False
    lower_is_better: bool | None = None

    @model_validator(mode="after")
    def _whole(self) -> Gate:
        if self.min is None and self.max is None and self.max_drop is None:
            raise ValueError("holds no rule; give min, max or max_drop")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}")
        if self.use == "interval" and self.min is None and self.max is None:
            raise ValueError("use: interval belongs to min or max; give one")
        if self.max_drop is None and (self.strict or self.lower_is_better is not None):
            raise ValueError("strict and lower_is_better belong to max_drop; give it")
        return self

    def matches(self, dataset: str, kind: str, metric: str) -> bool:
        """Whether the gate concerns this metric."""
        names = ((dataset, self.dataset), (kind, self.kind), (metric, self.metric))
        return all(_same(name, pattern) for name, pattern in names)


class Gates(BaseModel):
    """A file of gates.

    Attributes:
        gates: At least one.
        baseline: Results that `max_drop` is measured against, from the file's folder.
    """

    model_config = _STRICT
    gates: list[Gate] = Field(min_length=1)
    baseline: str | None = None


def _same(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)  # a name may hold a [ of its own


@dataclass(frozen=True)
class Check:
    """One rule on one metric.

    Attributes:
        dataset: Name, or the gate's pattern where nothing matches.
        kind: The same.
        metric: The same.
        rule: The rule in words ("min 0.95").
        passed: Whether it is kept.
        reason: What was found.
    """

    dataset: str
    kind: str
    metric: str
    rule: str
    passed: bool
    reason: str


@dataclass
class GateReport:
    """All checks, in the order of the gates, and what to beware of."""

    checks: list[Check] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether every check is green."""
        return all(check.passed for check in self.checks)


def read_gates(path: Path) -> Gates:
    """Read and check a file of gates.

    Raises:
        ConfigError: Missing or malformed file, unknown key, or a rule that cannot be; names it.
    """
    tree = read_yaml(path)
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a file of gates is a mapping with a list 'gates'")
    try:
        return Gates.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(step) for step in first["loc"])
        if first["type"] == "extra_forbidden":
            model: type[BaseModel] = Gates if len(first["loc"]) == 1 else Gate
            known = suggest(str(first["loc"][-1]), list(model.model_fields))
            raise ConfigError(f"{path}: {place}: unknown key{known}") from None
        if first["type"] == "value_error":
            raise ConfigError(f"{path}: {place}: {first['ctx']['error']}") from None
        if first["type"] == "missing":
            raise ConfigError(f"{path}: {place}: is missing; write it") from None
        raise ConfigError(f"{path}: {place}: {first['msg']} (got {first['input']!r})") from None


def run_gates(path: Path, place: str | Path, baseline: str | Path | None = None) -> GateReport:
    """Hold the results at a place against a file of gates.

    Args:
        path: YAML file of gates.
        place: Result, or folder of one model's results.
        baseline: The same of the model to measure drops against; before the file's own.

    Raises:
        ConfigError: A malformed file, several models at a place, or no baseline for max_drop.
        DataError: No results at a place, or records that cannot be read or paired.
    """
    gates = read_gates(path)
    results = read_model(place)
    base: list[StoredResult] = []
    wanted = [i for i, gate in enumerate(gates.gates) if gate.max_drop is not None]
    if wanted:
        if baseline is None and gates.baseline is not None:
            baseline = path.parent / gates.baseline
        if baseline is None:
            raise ConfigError(
                f"{path}: gates.{wanted[0]}.max_drop needs a baseline; write 'baseline: FOLDER' "
                f"or give --baseline FOLDER"
            )
        base = read_model(baseline)
    report = GateReport()
    drops = _Drops(gates.gates, base, report.warnings)
    for gate in gates.gates:
        report.checks += _checks(gate, results, base, drops)
    return report


class _Drops:
    """Paired differences to the baseline, each result's computed once."""

    def __init__(self, gates: list[Gate], base: list[StoredResult], warnings: list[str]) -> None:
        self.gates = [gate for gate in gates if gate.max_drop is not None]
        self.base = {(r.dataset, r.kind): r for r in base}
        self.warnings = warnings
        self._rows: dict[tuple[str, str], dict[str, Row]] = {}

    def baseline(self, new: StoredResult, metric: str) -> StoredResult | None:
        """The baseline's result that has the metric."""
        old = self.base.get((new.dataset, new.kind))
        return old if old is not None and metric in old.metrics else None

    def row(self, new: StoredResult, metric: str) -> Row | None:
        """Baseline (a) and new result (b); None where there is no pair and no interval."""
        key = (new.dataset, new.kind)
        old = self.baseline(new, metric)
        if old is None:
            return None
        if key not in self._rows:
            wanted = {m for m in new.metrics if any(g.matches(*key, m) for g in self.gates)}
            rows, warnings = compare_results(old, new, metrics=wanted)
            self.warnings += warnings
            self._rows[key] = {row.metric: row for row in rows}
        return self._rows[key].get(metric)


def _checks(
    gate: Gate, results: list[StoredResult], base: list[StoredResult], drops: _Drops
) -> Iterator[Check]:
    """Every rule of the gate on every metric it matches; red where it matches none."""
    found = [(r, m) for r in results for m in r.metrics if gate.matches(r.dataset, r.kind, m)]
    if not found:
        rules = " ".join(rule for rule, _ in _rules(gate))
        reason = f"no result matches{_nearest(gate, results)}"
        yield Check(gate.dataset, gate.kind, gate.metric, rules, False, reason)
    for result, metric in found:
        check = partial(Check, result.dataset, result.kind, metric)
        for rule, name in _rules(gate):
            if name == "max_drop":
                yield check(rule, *_drop(gate, result, metric, drops))
            else:
                yield check(rule, *_bound(gate, name, result, metric))
    if gate.max_drop is not None:  # what is no longer evaluated cannot be shown not to have dropped
        here = {(r.dataset, r.kind, m) for r, m in found}
        for key in ((r.dataset, r.kind, m) for r in base for m in r.metrics):
            if gate.matches(*key) and key not in here:
                rule = f"max_drop {gate.max_drop:g}"
                yield Check(*key, rule, False, "is in the baseline and not in the results")


def _rules(gate: Gate) -> Iterator[tuple[str, str]]:
    """(the rule in words, its key) of each rule the gate holds."""
    side = " (interval)" if gate.use == "interval" else ""
    if gate.min is not None:
        yield f"min {gate.min:g}{side}", "min"
    if gate.max is not None:
        yield f"max {gate.max:g}{side}", "max"
    if gate.max_drop is not None:
        yield f"max_drop {gate.max_drop:g}{' (strict)' if gate.strict else ''}", "max_drop"


def _nearest(gate: Gate, results: list[StoredResult]) -> str:
    """What may have been meant by the first of the gate's names that matches nothing."""
    left = list(results)
    for name in ("dataset", "kind"):
        pattern, known = getattr(gate, name), sorted({getattr(r, name) for r in left})
        left = [r for r in left if _same(getattr(r, name), pattern)]
        if not left:
            return f" {name} '{pattern}'{suggest(pattern, known)}"
    metrics = sorted({metric for r in left for metric in r.metrics})
    return f" metric '{gate.metric}'{suggest(gate.metric, metrics)}"


def _bound(gate: Gate, rule: str, result: StoredResult, metric: str) -> tuple[bool, str]:
    """(passed, reason) of a floor or a ceiling."""
    value: float = result.metrics[metric]
    interval = result.intervals.get(metric)
    shown = f"{value:.4f}{f' [{interval[0]:.4f}, {interval[1]:.4f}]' if interval else ''}"
    if gate.use == "interval":
        if interval is None:
            return False, f"{shown} has no interval; take use: value"
        value = interval[0] if rule == "min" else interval[1]
    limit = getattr(gate, rule)
    return (value >= limit if rule == "min" else value <= limit), shown


def _drop(gate: Gate, result: StoredResult, metric: str, drops: _Drops) -> tuple[bool, str]:
    """(passed, reason) of a largest drop."""
    assert gate.max_drop is not None
    lower = gate.lower_is_better
    sign = -1 if (lower_is_better(metric) if lower is None else lower) else 1
    old, row, p = drops.baseline(result, metric), drops.row(result, metric), None
    if old is None:
        return False, "the baseline has no such metric"
    if row is not None:
        a, b, p, (low, high) = row.a, row.b, row.p, _change(row, sign)
        how = f"{row.n} pairs" if row.interval else "no pairs, from the two intervals"
    elif metric in result.intervals and metric in old.intervals:
        return False, "no sample is in both, so that nothing can be shown"
    else:  # a count is what it is
        a, b = old.metrics[metric], result.metrics[metric]
        low = high = sign * (b - a)
        how = "a number without interval"
    gain = sign * (b - a)
    if gate.strict:
        passed = low >= -gate.max_drop
    else:
        unproven = high >= 0 or (p is not None and p >= LEVEL)
        passed = gain >= -gate.max_drop or unproven
    change = (gain, low, high) if gain > 0 else (-gain, -high, -low)
    size, low, high = (round(x, 4) + 0.0 for x in change)  # no "-0.0000"
    words = f"{'gain' if gain > 0 else 'drop'} {size:.4f} [{low:.4f}, {high:.4f}]"
    return passed and math.isfinite(gain), f"{a:.4f} -> {b:.4f}, {words}, {how}"


def _change(row: Row, sign: int) -> Interval:
    """Interval of the change, positive where better.

    A metric that is no mean of samples has no paired difference: the two intervals' far ends bound
    it, so that it lies below 0 only where they are apart.
    """
    if row.interval is not None:
        low, high = row.interval
    else:
        assert row.interval_a is not None and row.interval_b is not None
        low, high = row.interval_b[0] - row.interval_a[1], row.interval_b[1] - row.interval_a[0]
    return (low, high) if sign > 0 else (-high, -low)
