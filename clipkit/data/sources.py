"""Where samples come from: parts (shards, or one table) of so many rows, read one row at a time.

No torch. A source is pickled to the loader's workers; it holds counts and digests of its parts, and
loads the index of a shard when a row of it is read.
"""

from __future__ import annotations

import os
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import FileIO
from typing import Any, Protocol

import numpy as np
from rich.console import Console
from rich.progress import Progress

from clipkit.data.bad_samples import BadSample
from clipkit.data.index_sidecar import Head
from clipkit.data.known_counts import KnownCounts, missing_samples
from clipkit.data.remote_index import load_remote_index, remote_head
from clipkit.data.shard_store import ShardStore, StoreError, plain_url
from clipkit.data.shards import is_url
from clipkit.data.tar_index import TarIndex, fresh_head, load_index, manifest_hash
from clipkit.data.tar_scan import is_unsafe
from clipkit.dist.env import read_env
from clipkit.errors import DataError

_OPEN_FILES = 64
_INDEX_BYTES = 256 << 20
_NOTES = 20
_QUIET_S = 2.0
_UNREACHABLE_S = 60.0
_THREADS = 32
_MANY = 1000


class Source(Protocol):
    """What the loader needs to know of a data set.

    Attributes:
        name: For messages.
        counts: (P,) int64, samples of each part.
        manifest: Hex digest, the identity of the samples in their order.
        notes: Warnings to print at the start.
        lost: (part name, cause, samples) known to be missing.
    """

    name: str
    counts: np.ndarray
    manifest: str
    notes: list[str]
    lost: list[tuple[str, str, int]]

    def part_name(self, part: int) -> str:
        """Name of a part, for counters and messages."""

    def part_digest(self, part: int) -> str:
        """Hex digest of what a part's samples are and where they lie."""

    def key(self, part: int, row: int) -> str:
        """Key of a sample."""

    def members(
        self, part: int, row: int, wanted: tuple[str, ...], max_bytes: int
    ) -> dict[str, bytes]:
        """Extension -> bytes of a sample's wanted members.

        Raises:
            BadSample: They cannot be read, or one is larger than `max_bytes`.
        """

    def prefetch(self, parts: Sequence[int]) -> None:
        """These parts come next; never raises, never waits."""


class ShardSource:
    """Samples of tar shards: local files or, with a store, URLs.

    A shard that is damaged or lacks its end, and is known to have held more samples (by its
    earlier index, or by `sizes.json` or `<shard>_stats.json` beside it), counts in `lost`.

    Args:
        paths: The shards, in order; each a part.
        store: Fetches those that are URLs.
        index_bytes: Room for the indexes that are held at a time.

    Raises:
        DataError: A shard cannot be opened or reached.
    """

    def __init__(
        self,
        paths: Sequence[str],
        store: ShardStore | None = None,
        *,
        index_bytes: int = _INDEX_BYTES,
    ) -> None:
        self.paths, self.store, self.index_bytes = list(paths), store, index_bytes
        self._forget()
        remote = next((path for path in self.paths if is_url(path)), None)
        if remote is not None and store is None:
            raise DataError(f"'{plain_url(remote)}' is remote and there is no shard cache")
        self._unindexed: list[str] = []
        heads = _load_all(self._head, self.paths)
        self.name = ", ".join(self.part_name(p) for p in range(len(self.paths))[:1])
        if len(self.paths) > 1:
            self.name += f" and {len(self.paths) - 1} more"
        self.counts = np.array([head.count for head in heads], dtype=np.int64)
        self.manifest = manifest_hash([self.part_name(p) for p in range(len(heads))], heads)
        self._checksums = [bytes.fromhex(head.checksum) for head in heads]
        self.notes: list[str] = []
        self.lost: list[tuple[str, str, int]] = []
        self._judge(heads)
        fetched = [path for path in self._unindexed if is_url(path)]
        if fetched:
            self.notes.append(
                f"{len(fetched)} remote shards have no index and were fetched whole, first "
                f"{plain_url(min(fetched))}; run clipkit-data index before uploading"
            )

    def _forget(self) -> None:
        self._indexes: OrderedDict[int, TarIndex] = OrderedDict()
        self._held = 0
        self._files: OrderedDict[int, FileIO] = OrderedDict()
        self._unreachable: dict[int, float] = {}  # part -> when

    def __getstate__(self) -> dict[str, Any]:
        own = ("_indexes", "_held", "_files", "_unreachable", "_unindexed")
        return {k: v for k, v in self.__dict__.items() if k not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def part_name(self, part: int) -> str:
        """Path of a shard, or its URL without credentials."""
        return plain_url(self.paths[part])

    def part_digest(self, part: int) -> str:
        """Of a shard's index."""
        return self._checksums[part].hex()

    def key(self, part: int, row: int) -> str:
        """Key of a sample, "" where the shard's index is gone."""
        try:
            return self._index(part).key(row)
        except BadSample:
            return ""

    def members(
        self, part: int, row: int, wanted: tuple[str, ...], max_bytes: int
    ) -> dict[str, bytes]:
        """Extension -> bytes of a sample's wanted members.

        Raises:
            BadSample: The shard is gone, cut or changed, a member is too large, or the key points
                out of the tar.
        """
        members, index = {}, self._index(part)
        if is_unsafe(index.key(row)):
            raise BadSample("unsafe_name", index.key(row))
        chosen = index.members(row, wanted)
        for extension, _, size in chosen:
            if size > max_bytes:
                raise BadSample("too_many_bytes", f"{extension}: {size} bytes")
        with self._opened(part) as file:
            for extension, offset, size in chosen:
                members[extension] = os.pread(file, size, offset)
                if len(members[extension]) < size:
                    raise BadSample("shard_cut_short")
        return members

    def prefetch(self, parts: Sequence[int]) -> None:
        """Remote shards among `parts` are fetched in the background."""
        if self.store is not None:
            self.store.prefetch([self.paths[p] for p in parts if is_url(self.paths[p])])

    def _head(self, path: str) -> Head:
        try:
            if self.store is None or not is_url(path):
                return fresh_head(path) or self._first_index(path)
            return remote_head(path, self.store) or self._first_index(path)
        except StoreError as error:
            raise DataError(f"{error}; check the URL and the connection") from None

    def _first_index(self, path: str) -> Head:
        self._unindexed.append(path)
        if len(self._unindexed) == _MANY and read_env().rank == 0:
            print(
                f"clipkit: indexing up to {len(self.paths):,} shards on first use; "
                f"clipkit-data index does it ahead, in parallel",
                file=sys.stderr,
            )
        if self.store is None or not is_url(path):
            return load_index(path).head
        return load_remote_index(path, self.store).head

    def _index(self, part: int) -> TarIndex:
        """Index of a shard.

        Raises:
            BadSample: The shard is gone, or not the one of the start.
        """
        if part in self._indexes:
            self._indexes.move_to_end(part)
            return self._indexes[part]
        path = self.paths[part]
        if time.monotonic() - self._unreachable.get(part, -_UNREACHABLE_S) < _UNREACHABLE_S:
            raise BadSample("unreachable_shard", "it could not be reached a moment ago")
        try:
            if self.store is None or not is_url(path):
                index = load_index(path)
            else:
                index = load_remote_index(path, self.store)
        except StoreError as error:
            self._unreachable[part] = time.monotonic()
            raise BadSample("unreachable_shard", str(error)) from None
        except DataError as error:
            raise BadSample("unreadable_shard", str(error)) from None
        if bytes.fromhex(index.checksum) != self._checksums[part]:
            raise BadSample("changed_shard", "its members are not those it had at the start")
        self._indexes[part] = index
        self._held += index.nbytes
        while self._held > self.index_bytes and len(self._indexes) > 1:
            self._held -= self._indexes.popitem(last=False)[1].nbytes
        return index

    @contextmanager
    def _opened(self, part: int) -> Iterator[int]:
        """Descriptor of a shard; OSError becomes BadSample.

        Local files stay open, for forked workers too: reading at an offset moves nothing. A remote
        one is asked of the store each time, which keeps what was used last.
        """
        path = self.paths[part]
        try:
            if self.store is not None and is_url(path):
                with self.store.open(path) as file:
                    yield file.fileno()
                return
            if part not in self._files:
                self._files[part] = FileIO(path)
                if len(self._files) > _OPEN_FILES:
                    self._files.popitem(last=False)[1].close()
            self._files.move_to_end(part)
            yield self._files[part].fileno()
        except StoreError as error:
            raise BadSample("unreachable_shard", str(error)) from None
        except OSError as error:
            self._files.pop(part, None)  # a stale handle is opened anew
            raise BadSample("unreadable_shard", str(error)) from None

    def _judge(self, heads: Sequence[Head]) -> None:
        """Fill `notes` and `lost`."""
        known, endless = KnownCounts(), []
        for part, head in enumerate(heads):
            missing = missing_samples(self.paths[part], head, known)
            if missing:
                self.lost.append((self.part_name(part), "missing_samples", missing))
            if head.damaged or head.noted or missing:
                self.notes.append(self._note(part, head, missing))
            elif not head.end_mark:
                endless.append(self.part_name(part))
        if len(self.notes) > _NOTES:
            more = len(self.notes) - _NOTES
            self.notes[_NOTES:] = [f"{more} more shards need a look; run clipkit-data validate"]
        if endless:
            self.notes.append(
                f"{len(endless)} shards have no end-of-archive mark, first {endless[0]}; nothing "
                f"is known to be missing"
            )

    def _note(self, part: int, head: Head, missing: int) -> str:
        if len(self.notes) >= _NOTES:
            return ""
        try:
            what = self._index(part).remarks or "no end-of-archive mark"
        except BadSample as error:
            what = error.cause
        note = f"{self.part_name(part)}: {what}; {head.count} samples are used"
        if missing:
            note += (
                f", {missing} of the {head.count + missing} it held are missing; restore it, or "
                f"run clipkit-data index --accept on it"
            )
        return note


def _load_all(load: Callable[[str], Head], paths: Sequence[str]) -> list[Head]:
    """`load` of every path, in threads; a bar on stderr where that takes a while."""
    heads: list[Head] = []
    start, bar = time.monotonic(), None
    each = max(1, min(64, len(paths) // (8 * _THREADS)))
    chunks = [paths[i : i + each] for i in range(0, len(paths), each)]
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            for more in pool.map(lambda chunk: [load(path) for path in chunk], chunks):
                heads += more
                if bar is None and sys.stderr.isatty() and time.monotonic() - start > _QUIET_S:
                    bar = Progress(console=Console(stderr=True), transient=True)
                    task = bar.add_task("index of shards", total=len(paths))
                    bar.start()
                if bar is not None:
                    bar.update(task, completed=len(heads))
        finally:
            if bar is not None:
                bar.stop()
    return heads
