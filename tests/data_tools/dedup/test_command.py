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


@pytest.mark.parametrize("duplicates", [5, 6])
def test_a_threshold_that_takes_more_than_half_is_warned_of(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    duplicates: int,
) -> None:
    facts = {"eps": 0.3, "clusters": 2, "samples": 10, "counts": {"duplicates": duplicates}}
    monkeypatch.setattr("data_tools.dedup.run.dedup_semantic", lambda *a, **options: facts)
    assert run(monkeypatch, "semantic", tmp_path, tmp_path, "--eps", 0.3) == 0
    shown = capsys.readouterr().out
    assert "eps" in shown and "clusters" in shown
    assert ("a smaller --eps than 0.3 keeps more" in shown) == (duplicates == 6)
