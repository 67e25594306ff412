"""The command as a user types it."""

import json
from pathlib import Path

import pytest

from clipkit.data.shard_reader import iter_samples
from clipkit.data.tar_index import build_index
from data_tools import __main__ as command
from tests.fixtures_shards import write_tar


def test_no_negative_at_all_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = write_tar(tmp_path / "in/0.tar", [("a.txt", b"IMG 2041")])
    arguments = ["clipkit-data", "negatives", str(shard), str(tmp_path / "out")]
    for more, said in (([], True), (["--dry-run"], False)):
        monkeypatch.setattr("sys.argv", [*arguments, *more])
        with pytest.raises(SystemExit) as done:
            command.main()
        shown = capsys.readouterr().out
        assert done.value.code in (0, None)
        assert ("warning: no sample has a negative; " in shown) is said


def test_negatives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = write_tar(tmp_path / "in/0.tar", [("a.txt", b"two dogs"), ("a.json", b"{}")])
    arguments = ["clipkit-data", "negatives", str(shard), str(tmp_path / "out"), "--count", "4"]
    monkeypatch.setattr("sys.argv", [*arguments, "--kinds", "number, object", "--seed", "3"])
    with pytest.raises(SystemExit) as done:
        command.main()
    assert done.value.code in (0, None)
    shown = capsys.readouterr().out
    assert "samples with negatives" in shown and "number/replace" in shown
    assert "warning" not in shown
    sample = next(iter_samples(build_index(str(tmp_path / "out/0.tar"))))
    assert len(json.loads(sample.members["json"])["negatives"]) == 4
    monkeypatch.setattr("sys.argv", [*arguments, "--kinds", "colour"])
    with pytest.raises(SystemExit) as failed:
        command.main()
    assert failed.value.code == 2 and "colour" in capsys.readouterr().err
