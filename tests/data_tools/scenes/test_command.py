"""`clipkit-data scenes`: options reach the settings, errors are one line."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from data_tools.__main__ import app, main
from tests.data_tools.scenes.singles import write_singles


def test_options(tmp_path: Path) -> None:
    shard = write_singles(tmp_path / "s.tar")
    options = "--train 4 --test 2 --things 2 --kinds 20 --size 24 --seed 3 --category Objects"
    found = CliRunner().invoke(app, ["scenes", shard, str(tmp_path / "out"), *options.split()])
    assert found.exit_code == 0, found.output
    assert "4 train, 2 test, 8 questions, 20 kinds" in found.output
    kept = json.loads((tmp_path / "out" / "scenes.json").read_text())["settings"]
    assert kept == {
        "train": 4,
        "test": 2,
        "things": 2,
        "kinds": 20,
        "size": 24,
        "seed": 3,
        "categories": ["Objects"],
    }


def test_an_error_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = write_singles(tmp_path / "s.tar")
    monkeypatch.setattr("sys.argv", ["clipkit-data", "scenes", shard, str(tmp_path / "out")])
    with pytest.raises(SystemExit):
        main()
    assert "the shards hold 20 kinds of things; ask for less" in capsys.readouterr().err
