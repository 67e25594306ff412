"""File steps that survive a crash: flush to disk, replace in one move, hash while writing.

Every change that a checkpoint makes on disk goes through `disk`: a test puts another `Disk` in its
place and breaks any one of its operations. No torch here.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, TypedDict

BLOCK = 1 << 24
_LOCK = ".writer"
_NO_FLUSH = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.ENOSYS)


class Disk:
    """The operations that change a disk, one method each."""

    def make_folder(self, path: Path) -> None:
        """With its parents; one that is there stays as it is."""
        path.mkdir(parents=True, exist_ok=True)

    def create(self, path: Path) -> BinaryIO:
        """An empty file, open for writing."""
        return open(path, "wb", buffering=0)

    def write(self, file: BinaryIO, block: bytes | memoryview) -> None:
        """All of `block`: the system may take a part at a time."""
        rest = memoryview(block)
        while rest:
            rest = rest[file.write(rest) :]

    def sync(self, file: BinaryIO) -> None:
        """What was written to the file is on disk."""
        os.fsync(file.fileno())

    def sync_path(self, path: Path) -> None:
        """What is in a file, or which names are in a folder, is on disk.

        Some network file systems cannot flush a folder; there a new name counts at once.
        """
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in _NO_FLUSH or not path.is_dir():
                raise
        finally:
            os.close(descriptor)

    def move(self, source: Path, target: Path) -> None:
        """A file over another one, or a folder to a free name."""
        os.replace(source, target)

    def remove(self, path: Path) -> None:
        """A file."""
        os.unlink(path)

    def remove_folder(self, path: Path) -> None:
        """An empty folder."""
        os.rmdir(path)


disk = Disk()


class Written(TypedDict):
    """Size and sha256 of a file."""

    bytes: int
    sha256: str


def write_file(path: Path, blocks: Iterable[bytes | memoryview]) -> Written:
    """Write and flush a file, hashed on the way: what memory held, whatever the disk does later."""
    digest, size = hashlib.sha256(), 0
    with disk.create(path) as file:
        for block in blocks:
            disk.write(file, block)
            digest.update(block)
            size += len(block)
        disk.sync(file)
    return {"bytes": size, "sha256": digest.hexdigest()}


def write_text(path: Path, text: str) -> None:
    """Write and flush, then replace `path` in one move."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}-{threading.get_ident()}")
    try:
        write_file(temporary, [text.encode("utf-8")])
        disk.move(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            disk.remove(temporary)
        raise
    disk.sync_path(path.parent)


def flush(path: Path) -> None:
    """fsync a file or a folder."""
    disk.sync_path(path)


def move(source: Path, target: Path) -> None:
    """Rename within a folder, and flush the folder."""
    disk.move(source, target)
    disk.sync_path(target.parent)


def remove_tree(path: Path) -> None:
    """Remove a folder and all that is in it."""
    for folder, folders, names in os.walk(path, topdown=False):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in (*names, *links):
            disk.remove(Path(folder, name))
        disk.remove_folder(Path(folder))


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[bool]:
    """Be the only one, of all processes and threads, who writes in a folder.

    Gives whether that is sure: some file systems have no locks.

    Raises:
        BlockingIOError: Another one writes there now.
    """
    if not folder.is_dir():
        disk.make_folder(folder)
        disk.sync_path(folder.parent)
    with open(folder / _LOCK, "a", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            sure = True
        except BlockingIOError:
            raise BlockingIOError(0, "another process is writing checkpoints there") from None
        except OSError:
            sure = False
        try:
            yield sure
        finally:  # closing would not do: a process forked meanwhile holds the file open too
            with contextlib.suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_UN)


def share(path: Path) -> None:
    """Give a file the permissions of any new file; safetensors writes for its owner only."""
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(path, 0o666 & ~mask)


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
