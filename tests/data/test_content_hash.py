"""Hashes follow the bytes; large files are read once."""

import hashlib
import os

import pytest

from clipkit.data import content_hash
from clipkit.data.content_hash import file_hash, files_hash, tree_hash


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(content_hash, "_SMALL", 10)


def test_a_hash_is_that_of_the_bytes(tmp_path):
    for size in (3, 100):
        path = tmp_path / "x"
        path.write_bytes(b"a" * size)
        assert file_hash(path) == hashlib.sha256(b"a" * size).hexdigest()


def test_a_large_file_is_read_once_and_again_when_it_changes(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_bytes(b"a" * 100)
    first = file_hash(path)
    opened = []
    real = open
    monkeypatch.setattr("builtins.open", lambda *a, **k: opened.append(a) or real(*a, **k))
    assert file_hash(path) == first and not opened
    stat = os.stat(path)
    path.write_bytes(b"b" * 100)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert file_hash(path) == hashlib.sha256(b"b" * 100).hexdigest()


def test_a_damaged_note_is_not_believed(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"a" * 100)
    first = file_hash(path)
    for note in (tmp_path / "cache" / "hashes").iterdir():
        note.write_text("[1]")
    assert file_hash(path) == first


def test_without_a_place_for_notes(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_bytes(b"a" * 100)
    monkeypatch.setenv("CLIPKIT_CACHE", str(path))
    assert file_hash(path) == hashlib.sha256(b"a" * 100).hexdigest()


def test_trees(tmp_path):
    root = tmp_path / "tree"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "a").write_text("1")
    (root / "b").write_text("2")
    first = tree_hash(root)
    (root / "b.tar.idx.npz").write_text("an index")
    assert tree_hash(root) == first
    (root / ".hidden").write_text("x")
    assert tree_hash(root) != first
    (root / ".hidden").unlink()
    (root / "b").rename(root / "c")
    assert tree_hash(root) != first
    assert tree_hash(root / "c") == file_hash(root / "c")
    assert files_hash([root / "c"]) != files_hash([root / "c", root / "c"])


def test_linked_folders_count_and_loops_end(tmp_path):
    root, other = tmp_path / "tree", tmp_path / "other"
    root.mkdir()
    other.mkdir()
    (other / "a").write_text("1")
    (root / "linked").symlink_to(other)
    (other / "back").symlink_to(root)
    first = tree_hash(root)
    (other / "a").write_text("2")
    assert tree_hash(root) != first


def test_other_splits_do_not_count(tmp_path):
    root = tmp_path / "set"
    for name in ("test/0.tar", "train/0.tar", "images/a.png", "val-0.tar", "classnames.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    first = tree_hash(root, ["test"])
    for name in ("train/0.tar", "val-0.tar"):
        (root / name).write_text("changed")
        assert tree_hash(root, ["test"]) == first
    assert tree_hash(root, ["test", "train"]) != first
    assert tree_hash(root, ["test", "val"]) != first and tree_hash(root) != first
    for name in ("test/0.tar", "images/a.png", "classnames.txt"):
        before = tree_hash(root, ["test"])
        (root / name).write_text("changed")
        assert tree_hash(root, ["test"]) != before
