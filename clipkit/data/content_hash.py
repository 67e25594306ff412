"""sha256 of files, remembered by path, size and time so that large shards are read once."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_SMALL = 8 << 20  # bytes; hashing fewer costs less than remembering


def cache_root() -> Path:
    """$CLIPKIT_CACHE, else clipkit's folder in the user's cache."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("CLIPKIT_CACHE") or home / "clipkit")


def _note(path: str) -> Path:
    name = hashlib.sha256(os.path.abspath(path).encode()).hexdigest()[:32]
    return cache_root() / "hashes" / f"{name}.json"


def file_hash(path: str | Path) -> str:
    """Hex sha256 of a file's bytes.

    Raises:
        OSError: The file cannot be read.
    """
    stat = os.stat(path)
    stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
    if stat.st_size < _SMALL:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    note = _note(str(path))
    try:
        known = json.loads(note.read_text())
        if known["stamp"] == stamp:
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    temporary = note.with_name(f".{note.name}.tmp-{os.getpid()}")
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"stamp": stamp, "sha256": digest.hexdigest()}))
        os.replace(temporary, note)
    except OSError:  # a read-only home costs a second reading next time, nothing else
        pass
    return digest.hexdigest()


def files_hash(paths: Sequence[str | Path]) -> str:
    """One hash for files in this order; names do not count."""
    with ThreadPoolExecutor(max_workers=min(8, len(paths) or 1)) as pool:
        return hashlib.sha256("".join(pool.map(file_hash, paths)).encode()).hexdigest()


def tree_hash(root: str | Path, splits: Iterable[str] | None = None) -> str:
    """One hash for a file, or for a folder's files and their names; our own indexes left out.

    Args:
        root: File or folder.
        splits: Of shards that count; None counts all. Training shards beside a test split are
            large and change no result of it.
    """
    root = Path(root)
    if root.is_file():
        return file_hash(root)
    other = set() if splits is None else _other_splits(root, tuple(splits))
    files = sorted(p for p in _walk(root, other) if ".idx.npz" not in p.name)
    names = json.dumps([str(p.relative_to(root)) for p in files])
    return hashlib.sha256(f"{names}{files_hash(files)}".encode()).hexdigest()


def _other_splits(root: Path, splits: tuple[str, ...]) -> set[Path]:
    """Folders of shards, and shards, right below `root` that belong to none of the splits."""
    prefixes = tuple(f"{split}-" for split in splits)
    return {
        path.resolve()
        for path in root.iterdir()
        if (path.is_dir() and path.name not in splits and any(path.glob("*.tar")))
        or (path.suffix == ".tar" and not path.name.startswith(prefixes))
    }


def _walk(folder: Path, seen: set[Path]) -> Iterator[Path]:
    """Files below a folder, through linked folders too, each folder once; none that is `seen`."""
    real = folder.resolve()
    if real in seen:
        return
    seen.add(real)
    for path in folder.iterdir():
        if path.is_dir():
            yield from _walk(path, seen)
        elif path.is_file() and path.resolve() not in seen:
            yield path
