"""The shared options parse as they say."""

from __future__ import annotations

import pytest
import typer
from typer.testing import CliRunner

from data_tools.options import OutArgument, RunOptions, ShardsArgument, with_run_options

app = typer.Typer()


@app.command()
@with_run_options
def tool(shards: ShardsArgument, out: OutArgument, own: int = 4, *, run: RunOptions) -> None:
    """A tool."""
    print(shards, out, own, *run.values())


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ("a b out", "['a', 'b'] out 4 process None 2 None False"),
        (
            "a out --engine ray --workers 3 --retries 0 --limit 5 --dry-run --own 7",
            "['a'] out 7 ray 3 0 5 True",
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
