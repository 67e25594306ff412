"""Locks that a process killed while compiling left behind: torch waits for them without a word.

torch's extensions (what DeepSpeed compiles) take a lock by creating `<folder>/<name>/lock`. If its
process is killed, every later one that wants the extension waits for ever. No torch here.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

VARIABLE = "TORCH_EXTENSIONS_DIR"
OWN = "torch_extensions"


def avoid_dead_locks(run: Path, *, main: bool) -> str | None:
    """Compile in a folder of this run where the shared one is locked by nobody.

    Call it on every rank, rank 0 first, with the run folder claimed: locks of an earlier life of
    this run are removed, those of others never.

    Args:
        run: The run folder.
        main: Whether this is rank 0.

    Returns:
        One line for people where the shared folder is avoided.
    """
    own = run / OWN
    if main:
        for lock in _locks(own):
            with contextlib.suppress(OSError):
                lock.unlink()
    shared = _shared_folder()
    dead = [lock for lock in _locks(shared) if lock.parent.parent != own and not _is_held(lock)]
    if not dead:
        return None
    os.environ[VARIABLE] = str(own)
    return (
        f"{dead[0]}: no process of this machine holds this lock, and torch would wait for it for "
        f"ever; this run compiles in {own}; remove the lock"
    )


def _shared_folder() -> Path:
    """Where torch compiles extensions."""
    if VARIABLE in os.environ:
        return Path(os.environ[VARIABLE])
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(cache) / "torch_extensions"


def _locks(folder: Path) -> list[Path]:
    """Lock files below it; without TORCH_EXTENSIONS_DIR there is one more level, of versions."""
    try:
        return sorted({*folder.glob("*/lock"), *folder.glob("*/*/lock")})
    except OSError:
        return []


def _is_held(lock: Path) -> bool:
    """Whether a process of this machine, as far as this user sees, has the file open."""
    with contextlib.suppress(OSError):
        wanted = lock.stat()
        for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
            with contextlib.suppress(OSError):
                found = descriptor.stat()
                if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                    return True
    return False
