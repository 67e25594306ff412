"""A lock of a dead compilation is walked around, one of a living process is not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from clipkit.engine.compile_lock import VARIABLE, avoid_dead_locks


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """TORCH_EXTENSIONS_DIR, with one finished extension."""
    folder = tmp_path / "shared"
    (folder / "done").mkdir(parents=True)
    (folder / "done" / "done.so").write_text("")
    monkeypatch.setenv(VARIABLE, str(folder))
    return folder


def test_without_a_lock_nothing_changes(shared: Path, tmp_path: Path) -> None:
    assert avoid_dead_locks(tmp_path / "run", main=True) is None
    assert os.environ[VARIABLE] == str(shared) and not (tmp_path / "run").exists()


def test_a_dead_lock_is_told_and_walked_around(shared: Path, tmp_path: Path) -> None:
    lock = shared / "fused_adam" / "lock"
    lock.parent.mkdir()
    lock.touch()
    text = avoid_dead_locks(tmp_path / "run", main=True)
    assert text is not None and str(lock) in text and "remove the lock" in text
    assert os.environ[VARIABLE] == str(tmp_path / "run" / "torch_extensions")
    assert lock.exists()  # not ours


def test_a_lock_that_is_held_is_waited_for(shared: Path, tmp_path: Path) -> None:
    lock = shared / "fused_adam" / "lock"
    lock.parent.mkdir()
    with open(lock, "w"):
        assert avoid_dead_locks(tmp_path / "run", main=True) is None


def test_torch_s_own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    lock = tmp_path / "cache" / "torch_extensions" / "py311_cpu" / "fused_adam" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    try:
        assert str(lock) in (avoid_dead_locks(tmp_path / "run", main=False) or "")
    finally:
        os.environ.pop(VARIABLE, None)


def test_an_earlier_life_s_own_lock_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "run" / "torch_extensions"))
    lock = tmp_path / "run" / "torch_extensions" / "fused_adam" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    assert avoid_dead_locks(tmp_path / "run", main=False) is None and lock.exists()
    assert avoid_dead_locks(tmp_path / "run", main=True) is None and not lock.exists()
