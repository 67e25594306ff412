"""Sidecar files of tar indexes: `<shard>.idx.npz`, beside the shard or in the cache folder.

Its first entry, `head`, is a fixed number of bytes at the start of the file, so that the counts of
many thousand shards are known by one small read each. Whatever is wrong with a sidecar (damage,
another version, numbers that cannot be) makes it count as absent: the shard is scanned again.
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clipkit.data.content_hash import cache_root
from clipkit.data.plain_files import check_plain

_VERSION = 4
_HEAD_NUMBERS = 10
HEAD_BYTES = 1024  # enough of a sidecar for its head
_MAX_COUNT = 1 << 40
_END_MARK, _DAMAGED, _ACCEPTED, _NOTED = 1, 2, 4, 8
_NUMBERS = ("starts", "member_extension", "offsets", "sizes")
_TEXTS = ("key_text", "extensions", "damage", "content", "notes")

Stamp = tuple[int, int | None]


@dataclass(frozen=True)
class Head:
    """What is known of a shard without its members.

    Attributes:
        count: Its samples.
        expected, accepted, end_mark, checksum: As in TarIndex.
        damaged: Whether the tar is damaged.
        noted: Whether the index has notes.
    """

    count: int
    expected: int
    accepted: bool
    end_mark: bool
    damaged: bool
    checksum: str
    noted: bool = False

    @property
    def known(self) -> int:
        """Samples that the shard is known to have held."""
        return max(self.count, self.expected)


@dataclass(frozen=True)
class Fields:
    """All that a sidecar holds: the head, and TarIndex's further arguments by name."""

    head: Head
    members: dict[str, Any]


def stamp_of(path: str) -> Stamp:
    """Size and mtime of a file, in bytes and ns; None stands for any mtime.

    Raises:
        OSError: It is not there, or no regular file.
    """
    facts = check_plain(path)
    return facts.st_size, facts.st_mtime_ns


def sidecar_places(path: str) -> tuple[Path, Path]:
    """Where a shard's sidecar may lie: beside it, or in the cache folder."""
    name = hashlib.sha256(os.path.abspath(path).encode(errors="surrogateescape")).hexdigest()[:32]
    return Path(f"{path}.idx.npz"), cache_root() / "index" / f"{name}.idx.npz"


def _npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, array, version=(1, 0), allow_pickle=False)
    return out.getvalue()


_PREFIX = _npy(np.zeros(_HEAD_NUMBERS, "<i8"))[: -8 * _HEAD_NUMBERS]


def read_head(sidecar: Path, stamp: Stamp | None = None) -> Head | None:
    """Head of a sidecar; None where there is no sound one, or none of a shard with this stamp."""
    try:
        with open(sidecar, "rb", buffering=0, opener=_without_waiting) as file:
            return head_of(file.read(HEAD_BYTES) or b"", stamp)
    except OSError:
        return None


def _without_waiting(path: str, flags: int) -> int:
    """Opens pipes too, which then hold nothing."""
    return os.open(path, flags | os.O_NONBLOCK)


def head_of(data: bytes, stamp: Stamp | None = None) -> Head | None:
    """Head of a sidecar that begins with these bytes; None as `read_head`."""
    begin = 30 + int.from_bytes(data[26:28], "little") + int.from_bytes(data[28:30], "little")
    end = begin + len(_PREFIX) + 8 * _HEAD_NUMBERS
    npy = data[begin:end]
    if data[30:38] != b"head.npy" or not npy.startswith(_PREFIX) or len(npy) < end - begin:
        return None
    if zlib.crc32(npy) != int.from_bytes(data[14:18], "little"):
        return None
    numbers = np.frombuffer(npy, "<i8", offset=len(_PREFIX))
    version, size, mtime, count, expected, flags = numbers[:6].tolist()
    if version != _VERSION or (stamp and stamp not in ((size, mtime), (size, None))):
        return None
    if not (0 <= count < _MAX_COUNT and 0 <= expected < _MAX_COUNT):
        return None
    return Head(
        count=count,
        expected=expected,
        accepted=bool(flags & _ACCEPTED),
        end_mark=bool(flags & _END_MARK),
        damaged=bool(flags & _DAMAGED),
        noted=bool(flags & _NOTED),
        checksum=numbers[6:].tobytes().hex(),
    )


def read_fields(sidecar: Path, stamp: Stamp) -> Fields | None:
    """Everything in the sidecar of a shard with this stamp; None where it is not sound."""
    head = read_head(sidecar, stamp)
    if head is None:
        return None
    try:
        with zipfile.ZipFile(sidecar) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                return None  # a few bytes could expand to all memory
        with np.load(sidecar, allow_pickle=False) as file:
            members: dict[str, Any] = {name: file[name] for name in _NUMBERS}
            texts = {name: file[name] for name in _TEXTS}
        if any(array.dtype != np.uint8 or array.ndim != 1 for array in texts.values()):
            return None
        members |= {name: array.tobytes().decode() for name, array in texts.items()}
    except Exception:  # zipfile and numpy raise a dozen kinds on damage; whatever it is, rebuild
        return None
    members["extensions"] = tuple(filter(None, members["extensions"].split("\0")))
    return Fields(head, members) if _sound(head, members, stamp[0]) else None


def _sound(head: Head, members: dict[str, Any], size: int) -> bool:
    """Whether the numbers can be those of a shard of `size` bytes."""
    starts, codes, offsets, sizes = (members[name] for name in _NUMBERS)
    types = [(a.dtype.str, a.ndim) for a in (starts, codes, offsets, sizes)]
    if types != [("<i8", 1), ("<i4", 1), ("<i8", 1), ("<i8", 1)] or len(starts) != head.count + 1:
        return False
    if not len(codes) == len(offsets) == len(sizes) == starts[-1]:
        return False
    if members["key_text"].count("\0") != max(head.count - 1, 0):
        return False
    return bool(
        starts[0] == 0
        and (np.diff(starts) > 0).all()
        and ((codes >= 0) & (codes < len(members["extensions"]))).all()
        and ((sizes >= 0) & (sizes <= size)).all()
        and ((offsets >= 0) & (offsets <= size - sizes)).all()
        and (np.diff(offsets) > 0).all()
    )


def sidecar_bytes(fields: Fields, stamp: Stamp) -> bytes:
    """Content of a sidecar."""
    head, members = fields.head, fields.members
    flags = _END_MARK * head.end_mark | _DAMAGED * head.damaged
    flags |= _ACCEPTED * head.accepted | _NOTED * head.noted
    numbers = np.array([_VERSION, *stamp, head.count, head.expected, flags, 0, 0, 0, 0], "<i8")
    numbers[6:] = np.frombuffer(bytes.fromhex(head.checksum), "<i8")
    texts = {**members, "extensions": "\0".join(members["extensions"])}
    arrays: dict[str, Any] = {name: members[name] for name in _NUMBERS}
    arrays |= {name: np.frombuffer(texts[name].encode(), np.uint8) for name in _TEXTS}
    out = io.BytesIO()
    np.savez(out, head=numbers, **arrays)
    return out.getvalue()


def write_sidecar(path: str, fields: Fields, stamp: Stamp) -> None:
    """Write a shard's sidecar to the first place that takes it."""
    beside, cached = sidecar_places(path)
    data = sidecar_bytes(fields, stamp)
    if not (os.access(beside.parent, os.W_OK) and write_whole(beside, data)):
        write_whole(cached, data)


def write_whole(path: Path, data: bytes) -> bool:
    """Write a file whole or not at all; False where the disk is full or read-only."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        return False
    return True
