"""`clipkit-data stats` names shards by pattern and folder."""

from pathlib import Path

from typer.testing import CliRunner

from clipkit.errors import DataError
from data_tools.__main__ import app
from tests.fixtures_shards import write_shards


def run(*arguments):
    return CliRunner().invoke(app, ["stats", *map(str, arguments)])


def test_from_the_command_line(tmp_path: Path) -> None:
    write_shards(tmp_path / "d", [3, 2], bad=(1,))
    found = run(tmp_path / "d", tmp_path / "out", "--decode", "--workers", 1, "--show", 2)
    assert found.exit_code == 0, found.output + str(found.exception)
    assert "unreadable image" in found.output and "stats.html" in found.output
    html = (tmp_path / "out" / "stats.html").read_text()
    assert "--decode" in html and html.count("data:image/jpeg") == 2
    dry = run(tmp_path / "d", tmp_path / "dry", "--dry-run")
    assert dry.exit_code == 0 and not (tmp_path / "dry").exists()
    assert isinstance(run(tmp_path / "nowhere", tmp_path / "o").exception, DataError)
