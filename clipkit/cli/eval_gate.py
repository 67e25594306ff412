"""`clipkit eval gate GATES RESULTS`: exit status 1 where results break a rule."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from clipkit.eval.gate import GateReport


def gate(
    gates: Annotated[Path, typer.Argument(help="YAML file of gates.")],
    results: Annotated[Path, typer.Argument(help="Results of one model: its folder, or one JSON.")],
    baseline: Annotated[
        Path | None,
        typer.Option(help="Results that max_drop is measured against; before the file's own."),
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Write the checks as JUnit XML.")] = None,
) -> None:
    """Hold results against floors, ceilings and largest drops; exit status 1 if one is broken."""
    from clipkit.cli.console import table_console
    from clipkit.eval.gate import run_gates
    from clipkit.eval.plain_text import printable

    report = run_gates(gates, results, baseline)
    for warning in report.warnings:
        print(f"clipkit: warning: {printable(warning)}", file=sys.stderr)
    if junit is not None:
        _write(junit, report)
    table_console().print(gate_table(report))
    if not report.passed:
        raise typer.Exit(1)


def _write(path: Path, report: GateReport) -> None:
    from clipkit.eval.junit import Case, write_junit

    cases = [
        Case(
            f"{check.dataset}.{check.kind}",
            f"{check.metric} {check.rule}",
            None if check.passed else f"{check.rule}: {check.reason}",
            check.reason if check.passed else "",
        )
        for check in report.checks
    ]
    write_junit(path, "clipkit eval gate", cases)


def gate_table(report: GateReport) -> Table:
    """The checks for people."""
    from rich.table import Table
    from rich.text import Text

    from clipkit.eval.plain_text import printable

    red = sum(not check.passed for check in report.checks)
    title = f"{len(report.checks)} checks, {red} red"
    table = Table(title=title)
    for name in ("data set / task", "metric", "rule", "check", "found"):
        table.add_column(name, overflow="fold")
    for check in report.checks:
        mark = Text("green", "green") if check.passed else Text("RED", "bold red")
        words = (f"{check.dataset}/{check.kind}", check.metric, check.rule, check.reason)
        *names, found = (Text(printable(word)) for word in words)
        table.add_row(*names, mark, found)
    return table
