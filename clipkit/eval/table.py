"""Results as a table for people."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from clipkit.eval.base import EvalResult
from clipkit.eval.results import StoredResult

_SILENT = ("nan_rate",)  # always 0: NaN fails the task; it stands in the JSON


def results_table(results: Iterable[EvalResult]) -> Table:
    """One row per data set and metric, with its 95 % interval where there is one."""
    table = Table("data set", "metric", "value", "95 % interval")
    for result in results:
        for metric, value in result.metrics.items():
            if metric not in _SILENT:
                bounds = _bounds(result.intervals.get(metric))
                table.add_row(*map(Text, (result.dataset, metric, _number(value), bounds)))
    return table


def stored_table(results: Iterable[StoredResult], title: str) -> Table:
    """One row per data set, task and metric, with interval and n."""
    table = Table("data set", "task", "metric", "value", "95 % interval", "n", title=Text(title))
    for result in results:
        shown = {k: v for k, v in result.metrics.items() if k not in (*_SILENT, "n")}
        for i, (metric, value) in enumerate(shown.items()):
            first = (result.dataset, result.kind) if i == 0 else ("", "")
            n = result.data.get("counts", {}).get(metric, result.metrics.get("n", ""))
            bounds = _bounds(result.intervals.get(metric))
            table.add_row(*map(Text, (*first, metric, _number(value), bounds, str(n))))
        table.add_section()
    return table


def _number(value: float) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _bounds(interval: tuple[float, float] | None) -> str:
    return f"{interval[0]:.4f} .. {interval[1]:.4f}" if interval else ""
