"""The command line of the shard tools says what each benchmark needs."""

from typer.testing import CliRunner

from data_tools.__main__ import app
from data_tools.selection_formats import SOURCES


def test_help_names_the_source_of_every_benchmark():
    found = CliRunner().invoke(app, ["selection", "--help"], env={"COLUMNS": "100"})
    lines = [line.strip() for line in found.output.splitlines()]
    for name, source in SOURCES.items():
        assert f"{name}: {source}" in lines
