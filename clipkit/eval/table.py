"""Results as a table for people."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table

from clipkit.eval.base import EvalResult


def results_table(results: Iterable[EvalResult]) -> Table:
    """One row per data set and metric, with its 95 % interval where there is one."""
    table = Table("data set", "metric", "value", "95 % interval")
    for result in results:
        for metric, value in result.metrics.items():
            interval = result.intervals.get(metric)
            bounds = f"{interval[0]:.3f} .. {interval[1]:.3f}" if interval else ""
            number = f"{value:.4f}" if isinstance(value, float) else str(value)
            table.add_row(result.dataset, metric, number, bounds)
    return table
