"""`clipkit eval compare A B`: paired differences of two models' stored results."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipkit.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from clipkit.eval.compare import Comparison, Row
    from clipkit.eval.intervals import Interval

_STYLES = {"better": "green", "worse": "red", "apart": "bold"}
_NAMES = 27  # names this wide leave the numbers room at 80 columns
_WIDE = 100  # columns from which the counts of disagreements fit too
_CAPTION = (
    "B - A on the same samples with a 95 % interval (paired bootstrap, clusters drawn whole). "
    "only A / B: samples where only that model has a 1. p: McNemar's exact test where samples "
    "are 0 or 1 and stand alone, else a t-test with the bootstrap's standard error. Holm corrects "
    "it within a family: the metrics of whole sets (equal columns count once); tie rates and "
    "shares of whole sets; the parts of one metric. better, worse: B than A, at 5 %; -: no "
    "difference shown. apart, overlap: the metric is no mean of samples, so that only the two "
    "models' intervals are compared. Tie rates of 0 are left out."
)


def compare(
    a: Annotated[Path, typer.Argument(help="Results of model A: its folder, or one JSON.")],
    b: Annotated[Path, typer.Argument(help="Results of model B.")],
    by: Annotated[
        str | None, typer.Option(help="A row for each class or tag too: class or tags.")
    ] = None,
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Write the rows to this JSON file.")
    ] = None,
) -> None:
    """Which differences between two models are real."""
    from clipkit.cli.console import table_console
    from clipkit.eval.compare import compare as compare_places
    from clipkit.eval.plain_text import printable

    found = compare_places(a, b, by)
    for warning in found.warnings:
        print(f"clipkit: warning: {printable(warning)}", file=sys.stderr)
    if json_out is not None:
        _write(json_out, found)
    console = table_console()
    console.print(comparison_table(found, console.width))


def _write(path: Path, found: Comparison) -> None:
    from clipkit.checkpoint.files import write_text

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(found.to_json(), indent=1, allow_nan=False))
    except OSError as error:
        raise ConfigError(f"--json {path}: cannot be written: {error.strerror}") from None


def comparison_table(found: Comparison, width: int) -> Table:
    """The rows for people, for a screen of `width` columns."""
    from itertools import groupby

    from rich import box
    from rich.table import Table
    from rich.text import Text

    from clipkit.eval.compare import is_tie_rate
    from clipkit.eval.plain_text import printable

    rows = [r for r in found.rows if r.a or r.b or not is_tie_rate(r.metric)]
    heads = {f"{row.dataset} / {row.kind}" for row in rows}
    longest = max((len(row.metric) for row in rows), default=0)
    names = max(longest, min(_NAMES, max(map(len, heads), default=0)))
    table = Table(
        title=Text(printable(f"A: {found.a}   B: {found.b}")),
        caption=Text(_CAPTION),
        caption_justify="left",
        box=box.HORIZONTALS,
        padding=0,
        show_edge=False,
    )
    table.add_column("metric", width=names, overflow="fold")
    for name in _numbers(rows[0], width >= _WIDE) if rows else ():
        table.add_column(name, justify="right", overflow="fold")
    table.add_column("verdict", overflow="fold")
    for head, own in groupby(rows, lambda row: f"{row.dataset} / {row.kind}"):
        table.add_section()
        table.add_row(Text(printable(head), "bold"))
        for row in own:
            first = Text(printable(f"  {row.part}" if row.part else row.metric))
            cells = map(Text, _numbers(row, width >= _WIDE).values())
            table.add_row(first, *cells, Text(row.verdict, _STYLES.get(row.verdict, "")))
    return table


def _numbers(row: Row, wide: bool) -> dict[str, str]:
    """Column -> cell."""
    sides = {"A ": row.interval_a, "B ": row.interval_b}
    intervals = [_bounds(row.interval, "+.4f")]
    if row.interval is None:
        intervals = [side + _bounds(interval, ".4f") for side, interval in sides.items()]
    counts = "" if row.only_a is None else f"{row.only_a} / {row.only_b}"
    return {
        "n": str(row.n),
        "A": f"{row.a:.4f}",
        "B": f"{row.b:.4f}",
        "B - A": f"{row.difference:+.4f}",
        "95 % interval": "\n".join(intervals),
        **({"only A / B": counts} if wide else {}),
        "p": "" if row.p_holm is None else _p(row.p_holm),
    }


def _p(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "<0.001"


def _bounds(interval: Interval | None, form: str) -> str:
    return f"[{interval[0]:{form}}, {interval[1]:{form}}]" if interval else ""
