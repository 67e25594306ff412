"""How many samples others say a shard holds: open_clip's `sizes.json`, img2dataset's statistics."""

from __future__ import annotations

import json
from typing import Any

from clipkit.data.index_sidecar import Head
from clipkit.data.plain_files import read_plain
from clipkit.data.shard_store import filesystem
from clipkit.data.shards import is_url

_MAX_BYTES = 64 << 20


class KnownCounts:
    """Reads the files beside shards; each folder's `sizes.json` once."""

    def __init__(self) -> None:
        self._sizes: dict[str, dict[str, Any]] = {}

    def of(self, path: str) -> int:
        """Samples that a shard (path or URL) is said to hold, 0 where nobody says."""
        folder, slash, name = path.partition("?")[0].rpartition("/")
        if folder not in self._sizes:
            self._sizes[folder] = _read_object(f"{folder}{slash}sizes.json")
        stem = name.removesuffix(".tar")
        statistics = _read_object(f"{folder}{slash}{stem}_stats.json")
        return max(_count(self._sizes[folder].get(name)), _count(statistics.get("successes")))


def missing_samples(path: str, head: Head, known: KnownCounts) -> int:
    """Samples that a shard held once and holds no more.

    Only a shard that is damaged or lacks its end can have lost some: a whole one of fewer samples
    was written anew.
    """
    if head.end_mark and not head.damaged:
        return 0
    claimed = head.expected if head.accepted else max(head.expected, known.of(path))
    return max(claimed - head.count, 0)


def _count(value: Any) -> int:
    return value if isinstance(value, int) and 0 < value < 1 << 40 else 0


def _read_object(place: str) -> dict[str, Any]:
    """A JSON object; {} where there is none: these files only add to what the index knows."""
    try:
        if is_url(place):
            files, path = filesystem(place)
            data = json.loads(files.cat_file(path))
        else:
            data = json.loads(read_plain(place, _MAX_BYTES) or b"")
    except Exception:  # each remote file system has its own errors
        return {}
    return data if isinstance(data, dict) else {}
