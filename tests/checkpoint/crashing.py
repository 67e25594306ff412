"""A disk that crashes, fills up or flips a bit at an operation or byte of choice.

A crash is a BaseException that nobody catches; afterwards this life changes nothing any more. With
`power_loss`, what was not flushed is lost too: data of files and new names in folders. fsync itself
is left out, for speed: what would be lost is known here.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from clipkit.checkpoint import files
from clipkit.checkpoint.files import Disk


class Crash(BaseException):
    """The process is gone: nothing after this line runs."""


@dataclass
class CrashingDisk(Disk):
    """Operations and bytes are counted from 1; 0: never.

    Attributes:
        crash_at: Operation that is not done any more; of a write, half the block is.
        crash_at_byte: Byte of all that is written after which nothing is.
        full_from, full_for: That many operations that take space fail, from this operation on.
        flip_at_byte: Byte of all that is written that reaches the disk with one bit changed.
        power_loss: Whether a crash loses what was not flushed.
        operations: How many there were.
        written: Bytes written.
        crashed: Whether it has crashed.
        struck: What it has done so far: "crash", "full", "flip".
    """

    crash_at: int = 0
    crash_at_byte: int = 0
    full_from: int = 0
    full_for: int = 0
    flip_at_byte: int = 0
    power_loss: bool = False
    operations: int = 0
    written: int = 0
    crashed: bool = False
    log: list[str] = field(default_factory=list)
    struck: set[str] = field(default_factory=set)
    _unsynced: set[Path] = field(default_factory=set)
    _new_names: list[tuple[Path, Path | None, bytes | None]] = field(default_factory=list)

    def _count(self, name: str, path: Path, takes_space: bool = False) -> None:
        if self.crashed:
            raise Crash
        self.operations += 1
        self.log.append(f"{name} {path.name}")
        if self.operations == self.crash_at:
            self._crash()
        past = self.operations - self.full_from
        if takes_space and self.full_from and 0 <= past < self.full_for:
            self.struck.add("full")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _crash(self) -> None:
        self.crashed = True
        self.struck.add("crash")
        if self.power_loss:
            for path in self._unsynced:
                os.truncate(path, path.stat().st_size // 2)
            for target, source, before in reversed(self._new_names):
                self._forget(target, source, before)
        raise Crash

    @staticmethod
    def _forget(target: Path, source: Path | None, before: bytes | None) -> None:
        """The name never was: back to the one before, or gone."""
        if source is not None:
            os.replace(target, source)
        else:
            target.unlink()
        if before is not None:
            target.write_bytes(before)

    def make_folder(self, path: Path) -> None:
        self._count("make_folder", path, takes_space=True)
        super().make_folder(path)

    def create(self, path: Path) -> BinaryIO:
        self._count("create", path, takes_space=True)
        self._new_names.append((path, None, None))
        self._unsynced.add(path)
        return super().create(path)

    def write(self, file: BinaryIO, block: bytes | memoryview) -> None:
        data, path = bytes(block), Path(file.name)
        try:
            self._count("write", path, takes_space=True)
        except Crash:
            if self.operations == self.crash_at and not self.power_loss:
                file.write(data[: len(data) // 2])
            raise
        begin, self.written = self.written, self.written + len(data)
        if begin < self.crash_at_byte <= self.written:
            file.write(data[: self.crash_at_byte - begin])
            self._crash()
        if begin < self.flip_at_byte <= self.written:
            place = self.flip_at_byte - begin - 1
            self.struck.add("flip")
            data = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        super().write(file, data)

    def sync(self, file: BinaryIO) -> None:
        path = Path(file.name)
        self._count("sync", path)
        self._unsynced.discard(path)

    def sync_path(self, path: Path) -> None:
        self._count("sync_path", path)
        self._unsynced.discard(path)
        self._new_names = [n for n in self._new_names if n[0].parent != path]

    def move(self, source: Path, target: Path) -> None:
        self._count("move", source)
        before = target.read_bytes() if target.is_file() else None
        super().move(source, target)
        self._unsynced = {_moved(p, source, target) for p in self._unsynced}
        self._new_names = [
            (_moved(t, source, target), s and _moved(s, source, target), b)
            for t, s, b in self._new_names
        ]
        self._new_names.append((target, source, before))

    def remove(self, path: Path) -> None:
        self._count("remove", path)
        super().remove(path)
        self._unsynced.discard(path)
        self._new_names = [n for n in self._new_names if n[0] != path]

    def remove_folder(self, path: Path) -> None:
        self._count("remove_folder", path)
        super().remove_folder(path)
        self._new_names = [n for n in self._new_names if n[0] != path]


def _moved(path: Path, source: Path, target: Path) -> Path:
    return target / path.relative_to(source) if path.is_relative_to(source) else path


@contextlib.contextmanager
def on(disk: Disk) -> Iterator[None]:
    """The checkpoint's disk is this one."""
    before, files.disk = files.disk, disk
    try:
        yield
    finally:
        files.disk = before
