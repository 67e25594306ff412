"""The command as a user types it."""

from pathlib import Path

import pytest

from data_tools import __main__ as command
from data_tools.tables import write_table
from tests.fixtures_shards import noise_bytes


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["clipkit-data", "build", *map(str, arguments)])
    with pytest.raises(SystemExit) as done:
        command.main()
    return int(done.value.code or 0)


def test_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = {"img": [noise_bytes(i) for i in range(3)], "a": list("xyz"), "b": list("uvw")}
    write_table(tmp_path / "t.parquet", {**columns, "id": ["k0", "k1", "k2"]})
    options = ["--image-column", "img", "--caption-columns", "a,b", "--key-column", "id"]
    assert run(monkeypatch, tmp_path / "t.parquet", tmp_path / "out", *options) == 0
    assert "samples" in capsys.readouterr().out
    assert (tmp_path / "out" / "shard-00000.tar").exists()
    assert run(monkeypatch, tmp_path / "t.parquet", tmp_path / "out", *options[2:]) == 3
    assert "give --image-column, one of img, a, b, id" in capsys.readouterr().err
