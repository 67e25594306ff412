"""The study as the command line has it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from clipkit.cli.bench import app
from clipkit.errors import ConfigError, DataError


def _invoke(path: Path, *more: str):
    arguments = ["study", str(path), "--out", str(path.parent / "out"), "--data", "/data", *more]
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_list_execute_tabulate(study_file, ran, tmp_path) -> None:
    path = study_file()
    listed = _invoke(path, "--list").stdout.splitlines()
    assert len(listed) == 7 and all(line.startswith("to do") for line in listed)
    assert not ran
    done = _invoke(path, "--seeds", "0", "--table", str(tmp_path / "kept"))
    assert "| tuned (1 seed) | 0.750 | 0.750 | - |" in done.stdout
    assert sorted(p.name for p in (tmp_path / "kept").iterdir()) == ["tiny.jsonl", "tiny.md"]
    states = [line.split("  ")[0] for line in _invoke(path, "--list").stdout.splitlines()]
    assert states.count("done") == 4
    again = _invoke(path, "--table-only")
    assert again.stdout == done.stdout and len(ran) == 4


def test_mistakes(study_file, ran) -> None:
    with pytest.raises(ConfigError, match="--rows tund: the study has plain, tuned.*'tuned'"):
        _invoke(study_file(), "--rows", "tund")
    with pytest.raises(ConfigError, match="--seeds 7: the study has 0, 1"):
        _invoke(study_file(), "--seeds", "7")
    with pytest.raises(DataError, match="holds no results"):
        _invoke(study_file(), "--table-only")
