"""A file of JSON lines that a run appends to: a full or failing disk loses lines, never the run.

No torch here.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from pathlib import Path
from typing import Any

from clipkit.config.redact import redact

_LOCK_S = 5.0


class JsonLines:
    """Appends one object a line, secrets masked; a line is written whole or not at all.

    The file is opened by the first line, and again by the first one after a failure: a file system
    that comes back is used again. Threads may share it.

    Attributes:
        lost: Lines that could not be written.
        failing: Whether the last one could not.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.lost, self.failing = path, 0, False
        self._descriptor: int | None = None
        self._lock = threading.Lock()

    def write(self, values: dict[str, Any]) -> str | None:
        """Append a line. Returns what went wrong if the one before was written, else None."""
        text = json.dumps(redact({k: _plain(v) for k, v in values.items()}), default=str)
        if not self._lock.acquire(timeout=_LOCK_S):  # another thread hangs in the disk
            self.lost += 1
            return None
        try:
            self._append(f"{text}\n".encode())
        except OSError as error:
            first, self.failing = not self.failing, True
            self.lost += 1
            self._close()
            return f"{self.path.name}: {error.strerror or error}" if first else None
        finally:
            self._lock.release()
        self.failing = False
        return None

    def close(self) -> None:
        """Let go of the file."""
        if self._lock.acquire(timeout=_LOCK_S):
            self._close()
            self._lock.release()

    def _append(self, line: bytes) -> None:
        if self._descriptor is None:
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self._descriptor = os.open(self.path, flags, 0o666)
            if _ends_within_a_line(self._descriptor):
                line = b"\n" + line
        size = os.fstat(self._descriptor).st_size
        try:
            while line:
                line = line[os.write(self._descriptor, line) :]
        except OSError:
            with contextlib.suppress(OSError):  # the half line that a full disk took
                os.ftruncate(self._descriptor, size)
            raise

    def _close(self) -> None:
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = None


def _ends_within_a_line(descriptor: int) -> bool:
    """Whether a crash left the last line unfinished."""
    size = os.fstat(descriptor).st_size
    return size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"


def _plain(value: Any) -> Any:
    """JSON has no NaN: a non-finite number becomes null."""
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):
        return None
    return value


def keep_until(path: Path, step: int) -> None:
    """Drop lines after `step`, and one cut short by a crash: a resumed file joins the old one.

    Raises:
        OSError: The disk is full or failing; the file is as it was.
    """
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    temporary = path.with_suffix(".jsonl.tmp")
    try:
        temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def last_lines(path: Path, count: int, tail_bytes: int = 1 << 16) -> list[dict[str, Any]]:
    """The last whole objects of a file, oldest first, from its last `tail_bytes`; [] if none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - tail_bytes))
            lines = file.read().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(line)
            if isinstance(value, dict):
                found.append(value)
    return found[-count:]
