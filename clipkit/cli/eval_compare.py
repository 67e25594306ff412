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

_STYLES = {"better": "green", "worse": "red", "intervals apart": "bold"}
_NUMBERS = ("n", "A", "B", "B - A", "95 % interval", "1 only in A / B", "p (Holm)")
_CAPTION = (
    "B - A on the same samples with a 95 % interval (paired bootstrap, clusters drawn whole). "
    "1 only in A / B: samples where only that model has a 1. p: McNemar's exact test where samples "
    "are 0 or 1 and stand alone, else a t-test with the bootstrap's standard error; Holm-corrected "
    "over all rows. better, worse: B than A, at 5 %. intervals apart / overlap: the metric is no "
    "mean of samples, so its difference has no paired test."
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
    table_console().print(comparison_table(found))


def _write(path: Path, found: Comparison) -> None:
    from clipkit.checkpoint.files import write_text

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(found.to_json(), indent=1, allow_nan=False))
    except OSError as error:
        raise ConfigError(f"--json {path}: cannot be written: {error.strerror}") from None


def comparison_table(found: Comparison) -> Table:
    """The rows for people."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from clipkit.eval.plain_text import printable

    title = Text(printable(f"A: {found.a}   B: {found.b}"))
    parts = any(row.part for row in found.rows)
    table = Table(
        title=title,
        caption=Text(_CAPTION),
        caption_justify="left",
        box=box.HORIZONTALS,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for name in ("data set / task", "metric", *(["part"] if parts else [])):
        table.add_column(name, overflow="fold")
    for name in _NUMBERS:
        table.add_column(name, justify="right", overflow="fold")
    table.add_column("verdict", overflow="fold")
    for row in found.rows:
        names = [f"{row.dataset}/{row.kind}", row.metric, *([row.part] if parts else [])]
        cells = [Text(printable(cell)) for cell in (*names, *_numbers(row))]
        table.add_row(*cells, Text(row.verdict, _STYLES.get(row.verdict, "")))
    return table


def _numbers(row: Row) -> list[str]:
    paired = row.interval is not None
    left, right = (_bounds(None if paired else i, ".4f") for i in (row.interval_a, row.interval_b))
    return [
        str(row.n),
        f"{row.a:.4f}{left}",
        f"{row.b:.4f}{right}",
        f"{row.difference:+.4f}",
        _bounds(row.interval, "+.4f").strip(),
        "" if row.only_a is None else f"{row.only_a} / {row.only_b}",
        "" if row.p_holm is None else f"{row.p_holm:.2g}",
    ]


def _bounds(interval: Interval | None, form: str) -> str:
    return f" [{interval[0]:{form}}, {interval[1]:{form}}]" if interval else ""
