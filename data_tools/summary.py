"""The one JSON file that each run of a tool leaves behind, and the table it prints."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

import clipkit
from clipkit.errors import DataError

_SHOWN = 10


def write_summary(out: Path, tool: str, facts: Mapping[str, Any]) -> Path:
    """Write OUT/summary.json, whole or not at all.

    Args:
        out: Folder of the results.
        tool: Name of the command.
        facts: JSON. By custom "arguments" (those the result hangs on), "counts" (word -> number)
            and what `MapReport.facts` gives: shards, samples, seconds, failures.

    Raises:
        DataError: It cannot be written.
    """
    path = out / "summary.json"
    temporary = out / f".summary.json.tmp-{os.getpid()}"
    text = json.dumps({"tool": tool, "version": clipkit.__version__, **facts}, indent=2)
    try:
        out.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from None
    return path


def print_summary(tool: str, facts: Mapping[str, Any]) -> None:
    """Print numbers and words as a table on stdout, and below it what is said of shards by name.

    Of dictionaries, numbers are rows of the table and the first ten texts a line each. Arguments
    are left out.
    """
    lines = []
    table = Table(title=tool, show_header=False, title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    for name, value in facts.items():
        if name == "failures":
            table.add_row("failed shards", f"{len(value):,}")
        elif isinstance(value, Mapping) and name != "arguments":
            for word, said in value.items():
                if isinstance(said, (int, float)):
                    label = word if name == "counts" else f"{name}: {word}"
                    table.add_row(_plain(label), f"{said:,}")
                elif isinstance(said, str):
                    lines.append(f"{word}: {said}")
        elif isinstance(value, (int, float)):
            table.add_row(_plain(name), f"{value:,}")
        elif isinstance(value, str):
            table.add_row(_plain(name), Text(value))
    Console().print(table)
    print(*lines[:_SHOWN], sep="\n", end="\n" if lines else "")
    if len(lines) > _SHOWN:
        print(f"and {len(lines) - _SHOWN} more")


def _plain(name: str) -> Text:
    return Text(name.replace("_", " "))
