"""Atomic text, flushes and digests."""

import hashlib

import pytest

from clipkit.checkpoint import files
from clipkit.checkpoint.files import flush, sha256, write_text


def test_write_text_replaces_and_leaves_nothing_beside(tmp_path):
    path = tmp_path / "a.json"
    write_text(path, "first")
    write_text(path, "zweit\u00e9")
    assert path.read_text(encoding="utf-8") == "zweit\u00e9"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_crash_before_the_move_keeps_the_old_text(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_text(path, "old")

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        write_text(path, "new")
    assert path.read_text() == "old"


def test_text_is_on_disk_before_the_move(tmp_path, monkeypatch):
    events = []
    fsync, replace = files.os.fsync, files.os.replace
    monkeypatch.setattr(files.os, "fsync", lambda fd: events.append("fsync") or fsync(fd))
    monkeypatch.setattr(files.os, "replace", lambda a, b: events.append("replace") or replace(a, b))
    write_text(tmp_path / "a", "x")
    assert events == ["fsync", "replace", "fsync"]


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_sha256(tmp_path, size):
    data = bytes(size)
    (tmp_path / "a").write_bytes(data)
    assert sha256(tmp_path / "a") == hashlib.sha256(data).hexdigest()


def test_flush_takes_files_and_folders(tmp_path):
    (tmp_path / "a").touch()
    flush(tmp_path / "a")
    flush(tmp_path)
    with pytest.raises(FileNotFoundError):
        flush(tmp_path / "absent")
