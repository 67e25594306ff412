"""Shard patterns -> paths.

Braces {000..123} and {a,b}, globs, plain paths; remote or pipe URLs only when streaming.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable

from clipkit.errors import DataError

_BRACE = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"^(\d+)\.\.(\d+)$")


def expand_braces(pattern: str) -> list[str]:
    """ "a-{08..10}.tar" -> a-08.tar, a-09.tar, a-10.tar; {x,y} lists its items."""
    match = _BRACE.search(pattern)
    if not match:
        return [pattern]
    bounds = _RANGE.match(match.group(1))
    if bounds:
        low, high = bounds.groups()
        items = [str(i).zfill(len(low)) for i in range(int(low), int(high) + 1)]
    else:
        items = match.group(1).split(",")
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [head + item + rest for item in items for rest in expand_braces(tail)]


def is_url(path: str) -> bool:
    """Whether `path` is a URL or a pipe rather than a local file."""
    return "://" in path or path.startswith("pipe:")


def expand_shards(patterns: Iterable[str], where: str = "data.train") -> list[str]:
    """Resolve patterns to existing local files, sorted within each glob.

    Raises:
        DataError: No pattern at all, a pattern that matches nothing, or a missing file.
    """
    patterns = list(patterns)
    if not patterns:
        raise DataError(f"{where}: the shard list is empty; give at least one tar path or glob")
    paths: list[str] = []
    for pattern in patterns:
        items = expand_braces(pattern)
        if not items:
            raise DataError(f"{where}: '{pattern}' is an empty range; write the lower number first")
        for item in items:
            if item.lower().startswith("pipe:"):
                raise DataError(
                    f"{where}: '{item}' would run a shell command; list files or URLs instead"
                )
            if is_url(item):
                paths.append(item)
            elif glob.has_magic(item):
                found = sorted(glob.glob(item, recursive=True))
                if not found:
                    raise DataError(
                        f"{where}: no file matches '{item}'; check the path and the pattern"
                    )
                paths.extend(found)
            elif not os.path.isfile(item):
                raise DataError(
                    f"{where}: shard '{item}' does not exist; "
                    f"check the path and the range in braces"
                )
            else:
                paths.append(item)
    repeated = (
        next((p for i, p in enumerate(paths) if p in paths[:i]), None)
        if len(paths) < 5000
        else None
    )
    if repeated:
        raise DataError(
            f"{where}: shard '{repeated}' is listed twice; its samples would be repeated"
        )
    return paths


def resolve_shards(patterns: Iterable[str], mode: str, where: str = "data.train") -> list[str]:
    """expand_shards, and in "indexed" mode only local files.

    Raises:
        DataError: As expand_shards, or a URL in indexed mode.
    """
    paths = expand_shards(patterns, where)
    remote = next((p for p in paths if is_url(p)), None)
    if remote and mode == "indexed":
        raise DataError(
            f"{where}: '{remote}' is remote; copy it to disk or set data.mode=streaming"
        )
    return paths


def check_deal(num_shards: int, world_size: int, workers: int) -> None:
    """Streaming deals whole shards: each worker of each rank needs one.

    Raises:
        DataError: Too few shards; some worker would never deliver.
    """
    if num_shards < world_size * max(workers, 1):
        raise DataError(
            f"{num_shards} shards cannot be dealt to "
            f"{world_size} ranks x {max(workers, 1)} workers; data.workers, "
            f"or use data.mode=indexed"
        )
