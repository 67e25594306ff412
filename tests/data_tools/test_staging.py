"""A folder is there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipkit.errors import DataError
from data_tools.staging import new_folder


def test_it_appears_when_the_block_ends(tmp_path: Path) -> None:
    out = tmp_path / "a" / "out"
    with new_folder(out) as root:
        (root / "file").write_text("x")
        assert not out.exists()
    assert (out / "file").read_text() == "x" and [p.name for p in out.parent.iterdir()] == ["out"]


def test_nothing_is_left_of_a_failure_or_of_an_earlier_kill(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "old").write_text("x")
    out.mkdir()  # an empty one may be there
    with pytest.raises(KeyboardInterrupt), new_folder(out) as root:
        assert not any(root.iterdir())
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["out"] and not any(out.iterdir())
    with new_folder(out) as root:
        (root / "file").write_text("x")
    assert (out / "file").is_file()


def test_what_is_there_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for out in (tmp_path, tmp_path / "file"):
        with (
            pytest.raises(DataError, match="exists: name a new or an empty folder"),
            new_folder(out),
        ):
            pytest.fail("the block must not run")
    with pytest.raises(DataError, match="cannot be written"), new_folder(tmp_path / "file" / "out"):
        pytest.fail("the block must not run")
    assert (tmp_path / "file").read_text() == "x"
