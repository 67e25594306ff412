"""JSON lines, a table and a log-log plot of benchmark rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

Row = dict[str, Any]
_SHORT = {
    "extra_mb": "MB",
    "cpu_s": "CPU s",
    "wall_s": "wall s",
    "ns_per_pair": "wall ns/pair",
    "cpu_ratio_to_naive": "CPU/naive",
    "wall_ratio_to_naive": "wall/naive",
    "cpu_ratio_to_matmul": "CPU/matmul",
    "wall_ratio_to_matmul": "wall/matmul",
    "cpu_ratio_to_plain": "CPU/plain",
    "wall_ratio_to_plain": "wall/plain",
    "held_mb": "held MB",
    "cpu_ratio_to_naive_loss": "CPU/naive loss",
    "cpu_ratio_to_open_clip_accumulation": "CPU/open_clip accumulation",
}


def json_line(row: Row) -> str:
    """One object a line."""
    rounded = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()}
    return json.dumps(rounded)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def table_of(rows: list[Row], columns: list[str], title: str) -> Table:
    """A rich table; a skipped row shows why."""
    table = Table(title=title, title_justify="left")
    for name in columns:
        side: Literal["left", "right"] = "left" if name in ("impl", "case") else "right"
        table.add_column(_SHORT.get(name, name), justify=side)
    table.add_column("note")
    for row in rows:
        note = f"skipped: {row['skipped']}" if row.get("skipped") else ""
        table.add_row(*(_cell(row.get(c)) for c in columns), note)
    return table


def markdown(rows: list[Row], columns: list[str]) -> str:
    """The same table for a file."""
    lines = ["| " + " | ".join(columns) + " | |", "|" + "---|" * (len(columns) + 1)]
    for row in rows:
        note = f"skipped: {row['skipped']}" if row.get("skipped") else ""
        lines.append("| " + " | ".join(_cell(row.get(c)) for c in columns) + f" | {note} |")
    return "\n".join(lines) + "\n"


def plot(rows: list[Row], path: Path) -> None:
    """Memory and time against the batch, both logarithmic; one line an implementation."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.5))
    done = [r for r in rows if not r.get("skipped")]
    for axis, key, label in (
        (axes[0], "extra_mb", "extra memory, MB"),
        (axes[1], "cpu_s", "CPU time, s"),
    ):
        for impl in dict.fromkeys(r["impl"] for r in done):
            points = [(r["batch"], r[key]) for r in done if r["impl"] == impl]
            axis.plot(*zip(*points), marker="o", label=impl)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xlabel("batch")
        axis.set_ylabel(label)
        axis.grid(True, which="both", alpha=0.3)
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
