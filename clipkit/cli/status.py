"""`clipkit status RUN ... [--json]`: how runs stand, from their files alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

_STYLE = {"running": "green", "done": "green", "preempted": "cyan"}


def status(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; several make a table.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per run.")] = False,
) -> None:
    """Show step, pace, last checkpoint, losses of data and alarms of runs.

    Exit status 0: every run is running, done or preempted (it will be started again). 1: one of
    them needs a person: failed, dead (says running, but no process is there), stalled (no news for
    an hour) or unknown (no status file, or a damaged one).
    """
    from clipkit.engine.standing import NEEDS_A_PERSON, standing

    found = [standing(folder) for folder in runs]
    if as_json:
        for values in found:
            print(json.dumps(values))
    elif len(found) == 1:
        _print_one(found[0])
    else:
        _print_table(found)
    if any(values["state"] in NEEDS_A_PERSON for values in found):
        sys.exit(1)


def _print_one(values: dict[str, Any]) -> None:
    from clipkit.cli.console import table_console

    console = table_console()
    rows = {
        "run": values["run"],
        "state": _state(values),
        "error": values.get("error"),
        "step": _step(values),
        "pace": _pace(values),
        "loss": _number(values.get("loss"), ".4f"),
        "data wait": _percent(values.get("data_wait")),
        "peak memory": _number(values.get("peak_memory_gb"), ".1f GB"),
        "checkpoint": _checkpoint(values),
        "skipped": values.get("skipped") and f"{values['skipped']} batches",
        "bad samples": values.get("bad_samples"),
        "slow ranks": "; ".join(values.get("stragglers") or []),
        "where": _where(values),
        "alarms": _alarms(values),
    }
    for name, text in rows.items():
        if text:
            style = _STYLE.get(values["state"], "red") if name == "state" else None
            console.print(f"{name:>12}  {text}", style=style, markup=False, highlight=False)


def _print_table(found: list[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from clipkit.cli.console import table_console

    table = Table("run", "state", "step", "pace", "loss", "wait", "checkpoint", "skipped", "alarms")
    for values in found:
        alarms = (values.get("alarms") or {}).get("count", 0)
        cells = (
            values["run"],
            _state(values),
            _step(values),
            _pace(values),
            _number(values.get("loss"), ".4f"),
            _percent(values.get("data_wait")),
            _checkpoint(values),
            str(values.get("skipped") or 0),
            str(alarms),
        )
        table.add_row(*(Text(cell or "-") for cell in cells), style=_row_style(values, alarms))
    table_console().print(table)


def _row_style(values: dict[str, Any], alarms: int) -> str:
    style = _STYLE.get(values["state"], "red")
    return "yellow" if alarms and style != "red" else style


def _state(values: dict[str, Any]) -> str:
    state, age = values["state"], duration(values["age_s"])
    words = {
        "dead": f"dead since {age}: no process holds its lock; start it again with run.resume=auto",
        "stalled": f"stalled: no news for {age}",
        "running": f"running, last news {age} ago",
        "unknown": "unknown: there is no whole status.json",
    }
    text = words.get(state, f"{state} {age} ago")
    return f"{text}, exit status {values.get('exit_status')}" if state == "failed" else text


def _step(values: dict[str, Any]) -> str | None:
    step, total = values.get("step"), values.get("total_steps")
    if not isinstance(step, int):
        return None
    return (
        f"{step} of {total} ({step / total:.0%})" if isinstance(total, int) and total else f"{step}"
    )


def _pace(values: dict[str, Any]) -> str | None:
    rate = _number(values.get("samples_per_s"), ".0f samples/s")
    eta = duration(values["eta_s"]) if _is_number(values.get("eta_s")) else ""
    return ", ".join(filter(None, (rate, eta and f"{eta} to go"))) or None


def _checkpoint(values: dict[str, Any]) -> str:
    newest = values["checkpoint"]
    return f"{newest['name']}, {duration(newest['age_s'])} old" if newest else "none"


def _where(values: dict[str, Any]) -> str | None:
    parts = {"pid": values.get("pid"), "on": values.get("host"), "job": values.get("job_id")}
    return " ".join(f"{name} {value}" for name, value in parts.items() if value) or None


def _alarms(values: dict[str, Any]) -> str | None:
    alarms = values.get("alarms")
    if not isinstance(alarms, dict) or not alarms.get("count"):
        return None
    last = [
        f"{a.get('time', '')} step {a.get('step')}: {a.get('text') or a.get('kind')}"
        for a in alarms.get("last", [])
    ]
    return "\n              ".join([f"{alarms['count']}", *last])


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(value: Any, form: str) -> str | None:
    number, _, unit = form.partition(" ")
    return f"{value:{number}} {unit}".strip() if _is_number(value) else None


def _percent(value: Any) -> str | None:
    return f"{value:.0%}" if _is_number(value) else None


def duration(seconds: float | None) -> str:
    """90 -> "1 min", 7300 -> "2 h 1 min", 200000 -> "2 d 7 h"."""
    if seconds is None:
        return "?"
    minutes, hours, days = (int(seconds // x) for x in (60, 3600, 86400))
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min" if minutes else f"{int(seconds)} s"
