"""`clipkit-data filter` takes its rules from the command line."""

from pathlib import Path

from typer.testing import CliRunner

from clipkit.errors import ConfigError, DataError
from data_tools.__main__ import app
from data_tools.tables import read_keep
from tests.data_tools.filter.pools import write_samples


def run(*arguments):
    return CliRunner().invoke(app, ["filter", *map(str, arguments)])


def test_options_reach_the_run(tmp_path: Path) -> None:
    tables = write_samples(tmp_path / "tables", [f"cat {i}" for i in range(20)])
    (tmp_path / "entries.txt").write_text("cat\n")
    found = run(
        tables, tmp_path / "out", "--where", "width >= 4", "--balance", tmp_path / "entries.txt",
        "--t", 8, "--random", 0.5, "--seed", 3,
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    assert "where" in found.output and "16" in found.output
    kept = sum(len(rows) for rows, _ in read_keep(tmp_path / "out" / "keep.parquet").values())
    assert 1 <= kept < 8
    dry = run(tables, tmp_path / "dry", "--random", 0.5, "--dry-run", "--limit", 5)
    assert "dry run" in dry.output and not (tmp_path / "dry").exists()


def test_errors_are_the_users(tmp_path: Path) -> None:
    tables = write_samples(tmp_path / "tables", ["a", "b"])
    assert isinstance(run(tables, tmp_path / "out").exception, ConfigError)
    found = run(tables, tmp_path / "out", "--where", "witdh > 1")
    assert isinstance(found.exception, DataError) and "did you mean" in str(found.exception)
