"""The shared options parse as they say."""

from __future__ import annotations

import pytest
import typer
from typer.testing import CliRunner

from data_tools.options import (
    DryRunOption,
    EngineOption,
    LimitOption,
    OutArgument,
    RetriesOption,
    ShardsArgument,
    WorkersOption,
)

app = typer.Typer()


@app.command()
def tool(
    shards: ShardsArgument,
    out: OutArgument,
    engine: EngineOption = "process",
    workers: WorkersOption = None,
    retries: RetriesOption = 2,
    limit: LimitOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """A tool."""
    print(shards, out, engine, workers, retries, limit, dry_run)


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ("a b out", "['a', 'b'] out process None 2 None False"),
        (
            "a out --engine ray --workers 3 --retries 0 --limit 5 --dry-run",
            "['a'] out ray 3 0 5 True",
        ),
    ],
)
def test_values(arguments: str, shown: str) -> None:
    found = CliRunner().invoke(app, arguments.split())
    assert found.exit_code == 0 and found.output.strip() == shown


@pytest.mark.parametrize(
    "wrong", ["--engine dask", "--workers 0", "--retries -1", "--limit 0", "--limit x"]
)
def test_nonsense_is_refused(wrong: str) -> None:
    assert CliRunner().invoke(app, ["a", "out", *wrong.split()]).exit_code == 2
