"""Whole shards read in sequence by their index: what the offline tools walk through.

No torch. Training reads single samples instead (`sources.py`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from clipkit.data.tar_index import TarIndex
from clipkit.errors import DataError


@dataclass(frozen=True)
class RawSample:
    """Bytes of one sample.

    Attributes:
        row: Number within its shard, by the index.
        key: Its key.
        members: Extension -> bytes; of the allowed ones.
        too_large: Extensions left out because of their size.
    """

    row: int
    key: str
    members: dict[str, bytes]
    too_large: tuple[str, ...] = ()


def iter_samples(
    index: TarIndex,
    wanted: tuple[str, ...] | None = None,
    max_bytes: int = 50_000_000,
    stop: int | None = None,
) -> Iterator[RawSample]:
    """Samples of a shard, in order.

    Args:
        index: Of the shard.
        wanted: Extensions to read; None: all.
        max_bytes: Larger members are named in `too_large`, not read.
        stop: Samples to read at most.

    Raises:
        DataError: The shard is gone, or shorter than its index says.
    """
    try:
        with open(index.path, "rb") as file:
            for row in range(len(index) if stop is None else min(stop, len(index))):
                yield _read(file.fileno(), index, row, wanted, max_bytes)
    except OSError as error:
        raise DataError(f"shard '{index.path}' cannot be read: {error.strerror}") from None


def _read(
    file: int, index: TarIndex, row: int, wanted: tuple[str, ...] | None, max_bytes: int
) -> RawSample:
    members: dict[str, bytes] = {}
    too_large = []
    for extension, offset, size in index.members(row, wanted):
        if size > max_bytes:
            too_large.append(extension)
            continue
        members[extension] = os.pread(file, size, offset)
        if len(members[extension]) < size:
            raise DataError(
                f"shard '{index.path}' is shorter than its index says; "
                f"run clipkit-data index on it again"
            )
    return RawSample(row, str(index.keys[row]), members, tuple(too_large))
