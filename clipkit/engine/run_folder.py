"""The run folder: one run writes in it at a time, and its config says what was trained."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
import weakref
from pathlib import Path
from typing import Any, TextIO

import yaml

from clipkit.checkpoint.files import write_text
from clipkit.config.load import dump_config, read_yaml
from clipkit.config.schema import RunConfig
from clipkit.errors import ConfigError

CONFIG = "config.yaml"
_LOCK = ".lock"
_PATIENCE_S = 8.0  # workers of a process that was killed hold its lock until they notice, 5 s later
# settings that do not change what is trained
_FREE = (
    "run.resume", "run.dir", "log.", "eval.", "checkpoint.", "train.threads",
    "data.workers", "data.cache_", "data.retries", "data.token_cache",
)  # fmt: skip


def claim(folder: Path) -> TextIO:
    """Create the folder and hold its lock until the process ends.

    Raises:
        ConfigError: It cannot be created, or another process is training there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / _LOCK, "a", encoding="utf-8")  # noqa: SIM115  (held by the run)
    except OSError as error:
        raise ConfigError(f"run folder {folder}: cannot be written: {error.strerror}") from None
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(0.1)
                continue
            lock.close()
            raise ConfigError(
                f"{folder}: another process is training there ({_holder(folder)}); wait or end it"
            ) from None
        except OSError:  # a file system without locks
            break
    _leave_to_this_process(lock)
    with contextlib.suppress(OSError):  # a full disk: the lock holds without a name on it
        os.truncate(folder / _LOCK, 0)
        lock.write(_this_process())
        lock.flush()
    return lock


def _leave_to_this_process(lock: TextIO) -> None:
    """A loader's worker, which may outlive a killed run for seconds, does not hold the lock too."""
    held = weakref.ref(lock)

    def drop() -> None:
        if (inherited := held()) is not None:
            inherited.close()

    os.register_at_fork(after_in_child=drop)


def _this_process() -> str:
    return f"pid {os.getpid()} on {socket.gethostname()}"


def _holder(folder: Path) -> str:
    """Who claimed the folder last, as its lock says; "unknown" without one."""
    try:
        return (folder / _LOCK).read_text(encoding="utf-8", errors="replace")[:200] or "unknown"
    except OSError:
        return "unknown"


def may_write(folder: Path) -> bool:
    """Whether this process trains there, or none does."""
    return _holder(folder) == _this_process() or not is_live(folder)


def is_live(folder: Path) -> bool:
    """Whether a process is training there now. The kernel frees the lock of one that ended."""
    try:
        with open(folder / _LOCK, encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, list) and tree and all(isinstance(part, dict) for part in tree):
        tree = dict(enumerate(tree))
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {k: v for key, value in tree.items() for k, v in _flat(value, f"{prefix}{key}.").items()}


def changed_settings(folder: Path, config: RunConfig) -> list[str]:
    """One line for each setting that a resumed run trains with but the saved one did not."""
    path = folder / CONFIG
    if not path.is_file():
        return []
    try:
        saved = _flat(read_yaml(path))
    except ConfigError:
        return [f"{path} cannot be read; settings are not compared"]
    wanted = _flat(yaml.safe_load(dump_config(config)))
    return [
        f"resumed with {key}={wanted.get(key)!r}, was {saved.get(key)!r}"
        for key in sorted(saved.keys() | wanted.keys())
        if saved.get(key) != wanted.get(key) and not key.startswith(_FREE)
    ]


def write_config(folder: Path, config: RunConfig, step: int) -> None:
    """Write config.yaml; one that differs is kept as config_until_<step>.yaml."""
    text, path = dump_config(config), folder / CONFIG
    if path.is_file():
        before = path.read_text(encoding="utf-8", errors="replace")
        if before == text:  # also on a full disk
            return
        write_text(folder / f"config_until_{step:08d}.yaml", before)
    write_text(path, text)
