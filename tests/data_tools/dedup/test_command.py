"""The commands as a user types them."""

from pathlib import Path

import pytest

from data_tools import __main__ as command
from tests.fixtures_shards import noise_bytes, write_tar


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["clipkit-data", "dedup", *map(str, arguments)])
    with pytest.raises(SystemExit) as done:
        command.main()
    return int(done.value.code or 0)


@pytest.mark.parametrize(
    "kind", [["exact"], ["exact", "--pixels"], ["perceptual", "--mirrored"], ["text"]]
)
def test_dedup(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: list[str],
) -> None:
    members = [(f"{k}.{e}", b) for k in "ab" for e, b in (("png", noise_bytes(0)), ("txt", b"t"))]
    write_tar(tmp_path / "in" / "0.tar", members)
    assert run(monkeypatch, *kind, tmp_path / "in", tmp_path / "out") == 0
    assert "duplicates" in capsys.readouterr().out
    assert (tmp_path / "out" / "keep.parquet").exists()
    assert run(monkeypatch, "semantic", tmp_path / "in", tmp_path / "out2") == 3
    assert "clipkit embed" in capsys.readouterr().err
