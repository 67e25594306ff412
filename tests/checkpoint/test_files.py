"""Atomic text, flushes and digests."""

import errno
import hashlib
import os
import signal
import time

import pytest

from clipkit.checkpoint import files
from clipkit.checkpoint.files import (
    flush,
    only_writer,
    remove_tree,
    sha256,
    write_file,
    write_text,
)


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


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_flush_a_folder(tmp_path, monkeypatch, number):
    def refuse(descriptor):
        raise OSError(number, "fsync")

    (tmp_path / "a").touch()
    monkeypatch.setattr(files.os, "fsync", refuse)
    flush(tmp_path)
    with pytest.raises(OSError, match="fsync"):
        flush(tmp_path / "a")
    number = errno.EIO
    with pytest.raises(OSError, match="fsync"):
        flush(tmp_path)


def test_written_and_hashed_in_one_go(tmp_path):
    blocks = [b"ab", memoryview(b"cd" * 1000), b""]
    written = write_file(tmp_path / "a", blocks)
    data = (tmp_path / "a").read_bytes()
    assert data == b"ab" + b"cd" * 1000
    assert written == {"bytes": 2002, "sha256": hashlib.sha256(data).hexdigest()}


def test_a_system_that_takes_little_at_a_time():
    class Slow:
        taken = b""

        def write(self, block):
            self.taken += bytes(block[:3])
            return min(3, len(block))

    slow = Slow()
    files.Disk().write(slow, b"0123456789")
    assert slow.taken == b"0123456789"


def test_remove_tree_takes_folders_and_links_but_not_what_they_lead_to(tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    tree = tmp_path / "tree"
    (tree / "deep" / "deeper").mkdir(parents=True)
    (tree / "deep" / "file").touch()
    (tree / "to file").symlink_to(kept / "file")
    (tree / "deep" / "to folder").symlink_to(kept)
    remove_tree(tree)
    assert not tree.exists() and (kept / "file").exists()


def test_one_writer_at_a_time(tmp_path, monkeypatch):
    folder = tmp_path / "new"
    with only_writer(folder) as sure:
        assert sure
        with pytest.raises(OSError, match="another process is writing"), only_writer(folder):
            pass
    with only_writer(folder):
        pass

    def no_locks(*args):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    with only_writer(folder) as sure:
        assert not sure


def test_the_lock_ends_with_its_process(tmp_path):
    import os

    child = os.fork()
    if child == 0:
        with only_writer(tmp_path):
            os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    with only_writer(tmp_path) as sure:
        assert sure


def test_a_process_forked_meanwhile_does_not_keep_the_lock(tmp_path):
    with only_writer(tmp_path):
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
    try:
        with only_writer(tmp_path) as sure:
            assert sure
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
