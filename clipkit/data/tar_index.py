"""Where each member of a shard lies: one pass over the 512-byte headers, kept in a sidecar file.

A sample is the run of members that share a key (path up to the first dot of the base name), as in
webdataset. The scan checks each header's checksum, so a damaged tar is known instead of silently
cut short. The sidecar (`<shard>.idx.npz`) is rebuilt when the shard's size or mtime changes.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clipkit.data.content_hash import cache_root
from clipkit.errors import DataError

_BLOCK = 512
_VERSION = 2
_MAX_NAME = 64 * 1024
_MAX_PADDING = 1 << 20


@dataclass(frozen=True)
class TarIndex:
    """Members of one shard, grouped into samples.

    Attributes:
        path: The shard.
        keys: (n,) sample keys.
        starts: (n + 1,) first member of each sample.
        extensions: Distinct member extensions, lower case.
        member_extension: (m,) index into `extensions`.
        offsets: (m,) byte offset of each member's content.
        sizes: (m,) bytes of content.
        damage: What was wrong with the tar, "" if nothing; members before it are listed.
    """

    path: str
    keys: np.ndarray
    starts: np.ndarray
    extensions: tuple[str, ...]
    member_extension: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    damage: str

    def __len__(self) -> int:
        return len(self.keys)

    def member(self, sample: int, wanted: tuple[str, ...]) -> tuple[str, int, int] | None:
        """(extension, offset, size) of the first member of `sample` whose extension is `wanted`."""
        for m in range(self.starts[sample], self.starts[sample + 1]):
            extension = self.extensions[self.member_extension[m]]
            if extension in wanted:
                return extension, int(self.offsets[m]), int(self.sizes[m])
        return None


def _octal(field: bytes) -> int:
    if field[0] & 0x80:  # base-256, for sizes of 8 GB and more
        return int.from_bytes(field[1:], "big")
    value = int(field.split(b"\0")[0].strip() or b"0", 8)
    if value < 0:  # would walk backwards, for ever
        raise ValueError("negative number")
    return value


def _checksum_ok(header: bytes) -> bool:
    try:
        stored = _octal(header[148:156])
    except ValueError:
        return False
    return stored == sum(header[:148]) + 8 * 32 + sum(header[156:])


def _pax_path(content: bytes) -> tuple[str | None, int | None]:
    """Name and size of a pax header.

    Raises:
        ValueError: The size is not a whole number from 0.
    """
    name = size = None
    while content:
        length, _, _ = content.partition(b" ")
        if not length.isdigit() or int(length) < 5:
            break
        record, content = content[: int(length)], content[int(length) :]
        key, _, value = record[len(length) + 1 : -1].partition(b"=")
        if key == b"path":
            name = value.decode("utf-8", "replace")
        elif key == b"size":
            if not value.isdigit():
                raise ValueError(f"pax size {value[:20]!r}")
            size = int(value)
    return name, size


def _end_mark_problem(file: int, position: int, end: int) -> str:
    """ "" if a block of zeros at `position` is the end of the archive, else what lies behind it."""
    if end - position > _MAX_PADDING or os.pread(file, end - position, position).strip(b"\0"):
        return f"data behind the end-of-archive mark at byte {position}"
    return ""


def _header_problem(header: bytes, position: int) -> str:
    """ "" for a good header, else what is wrong with it."""
    if len(header) < _BLOCK:
        return "cut short" if header or position else "empty file"
    if not _checksum_ok(header):
        return f"broken header at byte {position}" if position else "not a tar file"
    return ""


def _scan(path: str) -> tuple[list[tuple[str, int, int]], str]:
    """[(member name, offset, size)] of the regular files, and what is damaged."""
    members: list[tuple[str, int, int]] = []
    end = os.path.getsize(path)
    position, next_name, next_size, extended = 0, None, None, False
    with open(path, "rb", buffering=0) as file:
        while True:
            start, header = position, os.pread(file.fileno(), _BLOCK, position)
            if position == end and position and not extended:
                return members, ""  # no end-of-archive blocks: whole all the same
            if len(header) == _BLOCK and not header.strip(b"\0"):
                return members, _end_mark_problem(file.fileno(), position, end)
            if problem := _header_problem(header, position):
                return members, problem
            try:
                size = _octal(header[124:136])
                kind = header[156:157]
                content = start + _BLOCK
                extended = kind in (b"L", b"x", b"g")
                if extended:
                    if size > _MAX_NAME:
                        return members, f"oversized extended header at byte {start}"
                    data = os.pread(file.fileno(), size, content)
                    if kind == b"L":
                        next_name = data.rstrip(b"\0").decode("utf-8", "replace")
                    elif kind == b"x":
                        next_name, next_size = _pax_path(data)
                    position = content + -(-size // _BLOCK) * _BLOCK
                    continue
            except ValueError:
                return members, f"broken header at byte {start}"
            size = size if next_size is None else next_size
            name, next_name, next_size = next_name or _header_name(header), None, None
            if content + size > end:
                return members, f"cut short inside '{name[:80]}'"
            position = content + -(-size // _BLOCK) * _BLOCK
            if kind in (b"0", b"\0"):
                members.append((name, content, size))


def _header_name(header: bytes) -> str:
    name = header[:100].split(b"\0")[0].decode("utf-8", "replace")
    prefix = header[345:500].split(b"\0")[0].decode("utf-8", "replace")
    return f"{prefix}/{name}" if header[257:262] == b"ustar" and prefix else name


def _split(name: str) -> tuple[str, str]:
    folder, _, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return (f"{folder}/{stem}" if folder else stem), extension.lower()


def build_index(path: str) -> TarIndex:
    """Scan one shard.

    Raises:
        DataError: The file cannot be opened.
    """
    try:
        members, damage = _scan(path)
    except OSError as error:
        raise DataError(f"shard '{path}' cannot be read: {error.strerror}") from None
    keys: list[str] = []
    starts: list[int] = []
    extensions: dict[str, int] = {}
    codes: list[int] = []
    offsets: list[int] = []
    sizes: list[int] = []
    for name, offset, size in members:
        key, extension = _split(name)
        if not extension or not key or key.endswith("/"):  # ._1.jpg, .DS_Store: as webdataset
            continue
        if not keys or keys[-1] != key:
            keys.append(key)
            starts.append(len(codes))
        codes.append(extensions.setdefault(extension, len(extensions)))
        offsets.append(offset)
        sizes.append(size)
    starts.append(len(codes))
    return TarIndex(
        path,
        np.array(keys, dtype=np.str_),
        np.array(starts, dtype=np.int64),
        tuple(extensions),
        np.array(codes, dtype=np.int32),
        np.array(offsets, dtype=np.int64),
        np.array(sizes, dtype=np.int64),
        damage,
    )


def _sidecar(path: str) -> Path:
    beside = Path(f"{path}.idx.npz")
    if os.access(beside.parent, os.W_OK):
        return beside
    name = hashlib.sha256(os.path.abspath(path).encode()).hexdigest()[:32]
    return cache_root() / "index" / f"{name}.idx.npz"


def _stamp(path: str) -> np.ndarray:
    stat = os.stat(path)
    return np.array([_VERSION, stat.st_size, stat.st_mtime_ns], dtype=np.int64)


def _read_sidecar(path: str, sidecar: Path) -> TarIndex | None:
    try:
        with np.load(sidecar, allow_pickle=False) as f:
            if not np.array_equal(f["stamp"], _stamp(path)):
                return None
            return TarIndex(
                path,
                f["keys"],
                f["starts"],
                tuple(f["extensions"].tolist()),
                f["member_extension"],
                f["offsets"],
                f["sizes"],
                str(f["damage"]),
            )
    except Exception:  # zipfile and numpy raise a dozen kinds on damage; whatever it is, rebuild
        return None


def _write_sidecar(index: TarIndex, sidecar: Path) -> None:
    temporary = sidecar.with_name(f"{sidecar.name}.tmp-{os.getpid()}")
    try:
        sidecar.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            np.savez(
                file,
                stamp=_stamp(index.path),
                keys=index.keys,
                starts=index.starts,
                extensions=np.array(index.extensions, dtype=np.str_),
                member_extension=index.member_extension,
                offsets=index.offsets,
                sizes=index.sizes,
                damage=np.array(index.damage),
            )
        os.replace(temporary, sidecar)
    except OSError:  # a full or read-only disk costs a rescan next time, nothing else
        temporary.unlink(missing_ok=True)


def load_index(path: str, write: bool = True) -> TarIndex:
    """The shard's index, from its sidecar where that is fresh, else by a scan that may write it.

    Raises:
        DataError: The shard cannot be opened.
    """
    sidecar = _sidecar(path)
    index = _read_sidecar(path, sidecar)
    if index is None:
        index = build_index(path)
        if write:
            _write_sidecar(index, sidecar)
    return index


def load_indexes(paths: list[str]) -> list[TarIndex]:
    """Indexes of many shards, scanned in parallel."""
    with ThreadPoolExecutor(max_workers=min(16, len(paths) or 1)) as pool:
        return list(pool.map(load_index, paths))


def manifest_hash(indexes: list[TarIndex]) -> str:
    """Identity of a data set: shard base names, sample counts and keys, in order."""
    digest = hashlib.sha256()
    for index in indexes:
        digest.update(f"{os.path.basename(index.path)}\0{len(index)}\0".encode())
        digest.update("\n".join(index.keys.tolist()).encode())
    return digest.hexdigest()
