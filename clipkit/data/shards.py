"""Shard patterns -> paths: braces {000..123} and {a,b}, globs, folders, plain paths and URLs."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator
from itertools import islice

from clipkit.errors import DataError

_BRACE = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"^(\d+)\.\.(\d+)$")
_MAX_SHARDS = 1_000_000
_TABLES = (".csv", ".tsv", ".parquet")


def expand_braces(pattern: str) -> list[str]:
    """ "a-{08..10}.tar" -> a-08.tar, a-09.tar, a-10.tar; {x,y} lists its items.

    Raises:
        DataError: It stands for more than a million names.
    """
    names = list(islice(_expand(pattern), _MAX_SHARDS + 1))
    if len(names) > _MAX_SHARDS:
        raise DataError(
            f"'{pattern}' stands for more than {_MAX_SHARDS:,} names; shorten its ranges"
        )
    return names


def _expand(pattern: str) -> Iterator[str]:
    match = _BRACE.search(pattern)
    if not match:
        yield pattern
        return
    head, tail = pattern[: match.start()], pattern[match.end() :]
    bounds = _RANGE.match(match.group(1))
    items: Iterable[str] = match.group(1).split(",")
    if bounds:
        low, high = bounds.groups()
        items = (str(i).zfill(len(low)) for i in range(int(low), int(high) + 1))
    for item in items:
        for rest in _expand(tail):
            yield head + item + rest


def is_url(path: str) -> bool:
    """Whether `path` is a URL or a pipe rather than a local file."""
    return "://" in path or is_pipe(path)


def is_pipe(path: str) -> bool:
    """Whether `path` is a shell command that writes a tar."""
    return path.lower().startswith("pipe:")


def is_table(path: str) -> bool:
    """Whether `path` is a list of image files (CSV, TSV, Parquet) rather than a tar."""
    return path.partition("?")[0].lower().endswith(_TABLES)


def expand_shards(
    patterns: Iterable[str], where: str = "data.train", *, allow_pipe: bool = False
) -> list[str]:
    """Resolve patterns to existing local files and to URLs, sorted within each glob or folder.

    Args:
        patterns: Braces, globs (of URLs too), folders (all their *.tar), files, URLs.
        where: Setting that is named in errors.
        allow_pipe: Let "pipe:" commands through.

    Raises:
        DataError: No pattern at all, a pattern that matches nothing, a missing file, or one that
            is listed twice.
    """
    patterns = list(patterns)
    if not patterns:
        raise DataError(f"{where}: the shard list is empty; give at least one tar path or glob")
    paths: dict[str, str] = {}
    for pattern in patterns:
        items = expand_braces(pattern)
        if not items:
            raise DataError(f"{where}: '{pattern}' is an empty range; write the lower number first")
        for item in items:
            for path in _resolve(item, where, allow_pipe):
                name = path if is_url(path) else os.path.normpath(path)
                if name in paths:
                    raise DataError(
                        f"{where}: shard '{_plain(path)}' is listed twice; its samples would be "
                        f"repeated"
                    )
                paths[name] = path
    return list(paths.values())


def _resolve(item: str, where: str, allow_pipe: bool) -> list[str]:
    """What one pattern without braces stands for."""
    if is_pipe(item):
        if not allow_pipe:
            raise DataError(
                f"{where}: '{_plain(item)}' would run a shell command; list files or URLs instead"
            )
        return [item]
    if is_url(item):
        return _resolve_url(item, where)
    if os.path.isdir(item):
        found = sorted(glob.glob(os.path.join(glob.escape(item), "*.tar")))
        if not found:
            raise DataError(f"{where}: folder '{item}' holds no *.tar; name another one")
        return found
    if os.path.isfile(item):  # first: a file's own name may hold glob signs
        return [item]
    if glob.has_magic(item):
        found = sorted(glob.glob(item, recursive=True))
        if not found:
            raise DataError(f"{where}: no file matches '{item}'; check the path and the pattern")
        return found
    if os.path.exists(item):
        raise DataError(f"{where}: '{item}' is no regular file; name a tar or a folder of tars")
    raise DataError(
        f"{where}: shard '{item}' does not exist; check the path and the range in braces"
    )


def _plain(path: str) -> str:
    """A path for a message: no credentials of a URL or a pipe."""
    from clipkit.data.shard_store import plain_url  # which itself imports from here

    return plain_url(path)


def _resolve_url(url: str, where: str) -> list[str]:
    """A URL, or what it matches: "*" and "[" are glob signs, "?" begins a query."""
    if url.endswith("/"):
        url += "*.tar"
    if not re.search(r"[*[]", url.partition("?")[0]):
        return [url]
    from clipkit.data.shard_store import StoreError, filesystem, with_retries

    files, path = filesystem(url)
    try:
        found = with_retries(lambda: files.glob(path), url, retries=3)
    except StoreError as error:
        raise DataError(f"{where}: {error}; check the URL and the connection") from None
    if not found:
        raise DataError(f"{where}: nothing matches '{_plain(url)}'; check the URL")
    return sorted(files.unstrip_protocol(name) for name in found)


def resolve_shards(
    patterns: Iterable[str],
    mode: str,
    where: str = "data.train",
    *,
    remote: bool = False,
    allow_pipe: bool = False,
) -> list[str]:
    """expand_shards, and what the mode of reading can take.

    Args:
        patterns, where: As expand_shards.
        mode: "indexed" or "streaming".
        remote: Indexed mode has a cache for remote shards.
        allow_pipe: Streaming may run "pipe:" commands.

    Raises:
        DataError: As expand_shards; a URL in indexed mode without a cache; a list of files that is
            remote or to be streamed.
    """
    streaming = mode == "streaming"
    paths = expand_shards(patterns, where, allow_pipe=allow_pipe and streaming)
    for path in paths:
        if is_table(path) and (streaming or is_url(path)):
            raise DataError(
                f"{where}: '{_plain(path)}' is a list of files; copy it to disk and set "
                f"data.mode=indexed"
            )
        if is_url(path) and not (streaming or remote):
            raise DataError(
                f"{where}: '{_plain(path)}' is remote; set data.cache_dir, copy it to disk or "
                f"set data.mode=streaming"
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
            f"{world_size} ranks x {max(workers, 1)} workers; lower data.workers, "
            f"or use data.mode=indexed"
        )
