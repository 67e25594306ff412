"""Where each member of a shard lies: one pass over the headers, kept in a sidecar file.

A sample is the run of members that share a key (path up to the first dot of the base name), as in
webdataset. A member whose extension the run already holds begins a sample of its own, of the same
key: nothing is lost, and it is noted (webdataset itself raises there). The sidecar is rebuilt when
the shard's size or mtime changes. A shard that is then found damaged or without its end, and held
more samples before, keeps that number in `expected`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from clipkit.data.index_sidecar import (
    Fields,
    Head,
    read_fields,
    read_head,
    sidecar_places,
    stamp_of,
    write_sidecar,
)
from clipkit.data.tar_scan import scan_tar
from clipkit.errors import DataError


@dataclass(frozen=True)
class TarIndex:
    """Members of one shard, grouped into samples: n samples, m members.

    Attributes:
        path: The shard.
        key_text: Keys of the samples, a NUL between two.
        starts: (n + 1,) first member of each sample.
        extensions: Distinct member extensions, lower case.
        member_extension: (m,) index into `extensions`.
        offsets: (m,) byte offset of each member's content.
        sizes: (m,) bytes of content.
        damage: What is wrong with the tar, "" if nothing; what is whole in it is listed.
        end_mark: Whether the archive has its end mark.
        expected: Samples that it is known to have held, where that is more; else 0.
        accepted: Its samples were declared to be all there are.
        content: Hex sha256 of the file, "" where it was not asked for.
        notes: What is odd and costs no sample, "" if nothing.
    """

    path: str
    key_text: str
    starts: np.ndarray
    extensions: tuple[str, ...]
    member_extension: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    damage: str = ""
    end_mark: bool = True
    expected: int = 0
    accepted: bool = False
    content: str = ""
    notes: str = ""

    def __len__(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def keys(self) -> np.ndarray:
        """(n,) object: the keys."""
        keys = np.empty(len(self), dtype=object)
        if len(self):
            keys[:] = self.key_text.split("\0")
        return keys

    def key(self, sample: int) -> str:
        """Key of one sample."""
        first, behind = self._key_ends[sample : sample + 2].tolist()
        return self.key_text[first + 1 : behind]

    @cached_property
    def _key_ends(self) -> np.ndarray:
        """(n + 1,) where each key's text ends, -1 first."""
        codes = np.frombuffer(self.key_text.encode("utf-32-le"), "<u4")
        return np.concatenate([[-1], np.flatnonzero(codes == 0), [len(codes)]])

    @property
    def remarks(self) -> str:
        """Damage and notes, in one line."""
        return "; ".join(filter(None, (self.damage, self.notes)))

    @cached_property
    def checksum(self) -> str:
        """Hex digest of the members' names, offsets and sizes."""
        digest = hashlib.sha256(json.dumps(self.extensions).encode() + self.key_text.encode())
        for array in (self.starts, self.member_extension, self.offsets, self.sizes):
            digest.update(array.astype("<i8").tobytes())
        return digest.hexdigest()

    @property
    def nbytes(self) -> int:
        """About how much memory it takes."""
        arrays = (self.starts, self.starts, self.member_extension, self.offsets, self.sizes)
        return sum(array.nbytes for array in arrays) + len(self.key_text) + 1000

    @property
    def whole(self) -> bool:
        """Whether the tar is undamaged and has its end."""
        return self.end_mark and not self.damage

    def member(self, sample: int, wanted: tuple[str, ...]) -> tuple[str, int, int] | None:
        """(extension, offset, size) of the first member of `sample` whose extension is `wanted`."""
        return next(iter(self.members(sample, wanted)), None)

    def members(
        self, sample: int, wanted: tuple[str, ...] | None = None
    ) -> list[tuple[str, int, int]]:
        """(extension, offset, size) of its wanted members (None: all)."""
        found = []
        for m in range(self.starts[sample], self.starts[sample + 1]):
            extension = self.extensions[self.member_extension[m]]
            if wanted is None or extension in wanted:
                found.append((extension, int(self.offsets[m]), int(self.sizes[m])))
        return found

    @property
    def head(self) -> Head:
        """What is known of it without its members."""
        return Head(
            count=len(self),
            expected=self.expected,
            accepted=self.accepted,
            end_mark=self.end_mark,
            damaged=bool(self.damage),
            checksum=self.checksum,
            noted=bool(self.notes),
        )


def build_index(path: str) -> TarIndex:
    """Scan one shard.

    Samples beside a damaged place stay only where they have a member of every extension in the
    shard: of another one, part may be lost.

    Raises:
        DataError: The file cannot be opened.
    """
    try:
        scan = scan_tar(path)
    except OSError as error:
        raise DataError(f"shard '{path}' cannot be read: {error.strerror}") from None
    keys: list[str] = []
    starts: list[int] = []
    extensions: dict[str, int] = {}
    codes: list[int] = []
    rows: list[int] = []
    held: set[str] = set()
    last, shared = None, 0
    for row, name in enumerate(scan.names):
        folder, slash, base = name.rpartition("/")
        stem, _, extension = base.partition(".")
        if not extension or not stem:  # ._1.jpg, .DS_Store: as webdataset
            continue
        key, extension = folder + slash + stem, extension.lower()
        if key != last or extension in held:
            shared += key == last
            keys.append(key)
            starts.append(len(codes))
            held, last = set(), key
        held.add(extension)
        codes.append(extensions.setdefault(extension, len(extensions)))
        rows.append(row)
    index = TarIndex(
        path,
        "\0".join(keys),
        np.array([*starts, len(codes)], dtype=np.int64),
        tuple(extensions),
        np.array(codes, dtype=np.int32),
        np.array(scan.offsets, dtype=np.int64)[rows],
        np.array(scan.sizes, dtype=np.int64)[rows],
        scan.damage,
        scan.end_mark,
        notes="; ".join(
            [
                *([scan.notes] if scan.notes else []),
                *([f"{shared} samples share the key of their neighbour"] if shared else []),
            ]
        ),
    )
    return _without_torn(index, scan.gaps)


def _without_torn(index: TarIndex, gaps: list[int]) -> TarIndex:
    """The index without the samples around gaps that may have lost a member."""
    beside: set[int] = set()
    for m in np.searchsorted(index.offsets, gaps).tolist():
        before, after = np.searchsorted(index.starts, [m - 1, m], side="right") - 1
        beside |= {int(before), int(after), int(after) + 1}  # a lost long name splits a sample
    everything = len(index.extensions)
    torn = [
        sample
        for sample in beside
        if 0 <= sample < len(index) and len(index.members(sample)) < everything
    ]
    if not torn:
        return index
    stays = np.ones(len(index), dtype=bool)
    stays[torn] = False
    lengths = np.diff(index.starts)
    of_member = np.repeat(stays, lengths)
    return replace(
        index,
        key_text="\0".join(index.keys[stays].tolist()),
        starts=np.concatenate([[0], np.cumsum(lengths[stays])]),
        member_extension=index.member_extension[of_member],
        offsets=index.offsets[of_member],
        sizes=index.sizes[of_member],
        damage=f"{index.damage}; {len(torn)} incomplete samples beside it left out",
    )


def load_index(path: str, write: bool = True) -> TarIndex:
    """The shard's index, from its sidecar where that is fresh, else by a scan that may write it.

    Raises:
        DataError: The shard cannot be opened.
    """
    try:
        stamp = stamp_of(path)
    except OSError as error:
        raise DataError(f"shard '{path}' cannot be read: {error.strerror}") from None
    places = sidecar_places(path)
    for place in places:
        index = index_from(path, read_fields(place, stamp))
        if index is not None:
            return index
    index = build_index(path)
    if not index.whole:
        known = next((head.known for head in map(read_head, places) if head), 0)
        index = replace(index, expected=known if known > len(index) else 0)
    if write:
        write_sidecar(path, index_fields(index), stamp)
    return index


def index_from(path: str, fields: Fields | None) -> TarIndex | None:
    """The index that a sidecar's fields make, None where they contradict each other."""
    if fields is None:
        return None
    head = fields.head
    index = TarIndex(
        path,
        **fields.members,
        end_mark=head.end_mark,
        expected=head.expected,
        accepted=head.accepted,
    )
    return index if index.head == head else None


def index_fields(index: TarIndex) -> Fields:
    """What its sidecar holds."""
    members = {
        "key_text": index.key_text,
        "starts": index.starts,
        "extensions": index.extensions,
        "member_extension": index.member_extension,
        "offsets": index.offsets,
        "sizes": index.sizes,
        "damage": index.damage,
        "content": index.content,
        "notes": index.notes,
    }
    return Fields(index.head, members)


def fresh_head(path: str) -> Head | None:
    """Count and digest of a shard by one small read; None where it has no fresh sidecar.

    Raises:
        DataError: The shard cannot be opened.
    """
    try:
        stamp = stamp_of(path)
    except OSError as error:
        raise DataError(f"shard '{path}' cannot be read: {error.strerror}") from None
    for place in sidecar_places(path):
        head = read_head(place, stamp)
        if head is not None:
            return head
    return None


def load_indexes(paths: Sequence[str]) -> list[TarIndex]:
    """Indexes of many shards, scanned in parallel."""
    with ThreadPoolExecutor(max_workers=min(16, len(paths) or 1)) as pool:
        return list(pool.map(load_index, paths))


def manifest_hash(names: Sequence[str], heads: Sequence[Head]) -> str:
    """Identity of a data set: (shard base name, samples, checksum of its headers), in order.

    Held by checkpoints; it changed with version 3 of the index, so older ones refuse to resume.
    """
    digest = hashlib.sha256()
    for name, head in zip(names, heads):
        digest.update(f"{name.rpartition('/')[2]}\0{head.count}\0{head.checksum}\n".encode())
    return digest.hexdigest()
