"""Patterns -> one source: tar shards, lists of image files, or both one behind the other.

No torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from clipkit.data.shard_store import ShardStore
from clipkit.data.shards import is_table
from clipkit.data.sources import ShardSource, Source


class JoinedSource:
    """Several sources one behind the other; their parts are counted through."""

    def __init__(self, sources: Sequence[Source], name: str) -> None:
        self.sources, self.name = list(sources), name
        self.counts = np.concatenate([source.counts for source in self.sources])
        manifests = "\n".join(source.manifest for source in self.sources)
        self.manifest = hashlib.sha256(manifests.encode()).hexdigest()
        self.notes = [note for source in self.sources for note in source.notes]
        self.lost = [item for source in self.sources for item in source.lost]
        self._first = np.cumsum([0, *(len(source.counts) for source in self.sources)])

    def _inner(self, part: int) -> tuple[Source, int]:
        number = int(np.searchsorted(self._first, part, side="right")) - 1
        return self.sources[number], part - int(self._first[number])

    def part_name(self, part: int) -> str:
        """Of the shard or list."""
        source, inner = self._inner(part)
        return source.part_name(inner)

    def part_digest(self, part: int) -> str:
        """Of the shard or list."""
        source, inner = self._inner(part)
        return source.part_digest(inner)

    def key(self, part: int, row: int) -> str:
        """Of one sample."""
        source, inner = self._inner(part)
        return source.key(inner, row)

    def members(
        self, part: int, row: int, wanted: tuple[str, ...], max_bytes: int
    ) -> dict[str, bytes]:
        """Bytes of one sample.

        Raises:
            BadSample: As its source does.
        """
        source, inner = self._inner(part)
        return source.members(inner, row, wanted, max_bytes)

    def prefetch(self, parts: Sequence[int]) -> None:
        """Tell each source which of its parts come next."""
        for number, source in enumerate(self.sources):
            low, high = self._first[number : number + 2]
            source.prefetch([part - int(low) for part in parts if low <= part < high])


def open_source(
    paths: Sequence[str],
    name: str,
    open_table: Callable[[str], Source],
    store: ShardStore | None = None,
) -> Source:
    """Open resolved shards and lists as one source, shards first.

    Args:
        paths: At least one.
        name: For messages.
        open_table: Opens a list.
        store: Of remote shards.

    Raises:
        DataError: A shard or list cannot be opened.
    """
    shards = [path for path in paths if not is_table(path)]
    sources: list[Source] = [ShardSource(shards, store)] if shards else []
    sources += [open_table(path) for path in paths if is_table(path)]
    source = sources[0] if len(sources) == 1 else JoinedSource(sources, name)
    source.name = name
    return source
