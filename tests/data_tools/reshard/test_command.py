"""The command as a user types it."""

from pathlib import Path

import pytest

from data_tools import __main__ as command
from tests.fixtures_shards import write_shards


def test_reshard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shards(tmp_path / "in", [3, 2])
    arguments = ["clipkit-data", "reshard", str(tmp_path / "in"), str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as done:
        command.main()
    assert done.value.code in (0, None) and "samples kept" in capsys.readouterr().out
    assert [p.name for p in (tmp_path / "out").glob("*.tar")] == ["shard-00000.tar"]
    monkeypatch.setattr("sys.argv", [*arguments, "--keep", str(tmp_path / "none.parquet")])
    with pytest.raises(SystemExit) as failed:
        command.main()
    assert failed.value.code == 3 and "none.parquet" in capsys.readouterr().err
