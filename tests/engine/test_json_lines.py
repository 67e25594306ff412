"""Lines are whole or absent, whatever the disk does, and later ones come through."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from clipkit.engine.json_lines import JsonLines, keep_until, last_lines


class Disk:
    """os.write with a limit: a full disk takes what fits and then refuses."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left: float = float("inf")
        self.error = errno.ENOSPC
        self._write = os.write
        monkeypatch.setattr("clipkit.engine.json_lines.os.write", self.write)

    def write(self, descriptor: int, data: bytes) -> int:
        """As os.write."""
        if self.left <= 0:
            raise OSError(self.error, os.strerror(self.error))
        written = self._write(descriptor, data[: int(min(self.left, len(data)))])
        self.left -= written
        return written


def lines(path: Path) -> list[Any]:
    """Every line parses, or this raises."""
    return [json.loads(x) for x in path.read_text().splitlines()]


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.ESTALE])
def test_a_full_disk_loses_lines_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    disk, file = Disk(monkeypatch), JsonLines(tmp_path / "x.jsonl")
    assert file.write({"step": 1}) is None
    disk.left, disk.error = 5, error
    problem = file.write({"step": 2})
    assert problem == f"x.jsonl: {os.strerror(error)}"  # told once
    assert file.write({"step": 3}) is None and file.lost == 2 and file.failing
    assert lines(file.path) == [{"step": 1}]
    disk.left = float("inf")
    assert file.write({"step": 4}) is None and not file.failing
    assert lines(file.path) == [{"step": 1}, {"step": 4}]
    disk.left = 0
    assert file.write({"step": 5}) is not None  # a second time is told again


def test_after_a_failure_the_file_is_opened_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, file = Disk(monkeypatch), JsonLines(tmp_path / "x.jsonl")
    file.write({"step": 1})
    disk.left, disk.error = 0, errno.ESTALE  # what a file server says of files it has forgotten
    file.write({"step": 2})
    file.path.unlink()
    disk.left = float("inf")
    file.write({"step": 3})
    assert lines(file.path) == [{"step": 3}]


def test_a_short_write_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr("clipkit.engine.json_lines.os.write", lambda fd, data: write(fd, data[:3]))
    file = JsonLines(tmp_path / "x.jsonl")
    file.write({"step": 1, "text": "some words"})
    assert lines(file.path) == [{"step": 1, "text": "some words"}]


def test_a_folder_that_is_gone_is_no_error(tmp_path: Path) -> None:
    file = JsonLines(tmp_path / "gone" / "x.jsonl")
    assert "No such file" in (file.write({"a": 1}) or "")
    (tmp_path / "gone").mkdir()
    assert file.write({"a": 2}) is None
    assert lines(file.path) == [{"a": 2}]


def test_a_line_that_a_crash_cut_short_stays_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "te')
    JsonLines(path).write({"step": 3})
    assert path.read_text().splitlines() == ['{"step": 1}', '{"step": 2, "te', '{"step": 3}']
    assert last_lines(path, 10) == [{"step": 1}, {"step": 3}]


def test_threads_share_a_file(tmp_path: Path) -> None:
    file = JsonLines(tmp_path / "x.jsonl")

    def write(thread: int) -> None:
        for i in range(50):
            file.write({"thread": thread, "i": i, "text": "x" * 200})

    threads = [threading.Thread(target=write, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = lines(file.path)
    assert len(found) == 200
    assert [x["i"] for x in found if x["thread"] == 2] == list(range(50))


def test_secrets_are_masked_and_odd_numbers_are_null(tmp_path: Path) -> None:
    file = JsonLines(tmp_path / "x.jsonl")
    file.write({"text": "hf_a1B2c3D4e5F6g7H8i9J0", "loss": float("nan"), "path": tmp_path})
    (found,) = lines(file.path)
    assert found == {"text": "[redacted]", "loss": None, "path": str(tmp_path)}


def test_a_history_on_a_full_disk_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')

    def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="full"):
            keep_until(path, 1)
    assert [x["step"] for x in lines(path)] == [1, 2] and os.listdir(tmp_path) == ["x.jsonl"]
    keep_until(path, 1)
    assert [x["step"] for x in lines(path)] == [1]


def test_the_tail_of_a_long_file(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("".join(f'{{"step": {i}}}\n' for i in range(1000)) + '[1]\n{"st')
    assert [x["step"] for x in last_lines(path, 3, tail_bytes=100)] == [997, 998, 999]
    assert last_lines(tmp_path / "none", 3) == []
