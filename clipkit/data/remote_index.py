"""Index of a remote shard, or its head: from a cache, from `<url>.idx.npz`, or from the shard."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

from clipkit.data.content_hash import cache_root
from clipkit.data.index_sidecar import (
    HEAD_BYTES,
    Head,
    head_of,
    read_fields,
    read_head,
    sidecar_bytes,
    write_whole,
)
from clipkit.data.shard_store import ShardStore, StoreError, filesystem, plain_url, with_retries
from clipkit.data.tar_index import TarIndex, build_index, index_fields, index_from

_MARKS = ("ETag", "etag", "mtime", "LastModified", "updated")


def load_remote_index(url: str, store: ShardStore) -> TarIndex:
    """Index of the shard at a URL; its `path` is the URL.

    It is kept by URL, size and version, so a shard that is replaced gets a new one. What an
    earlier version held is not known.

    Raises:
        StoreError: The shard cannot be reached.
        ConfigError, DataError: As the store's.
    """
    cached, size = _cached(url, store)
    index = index_from(url, read_fields(cached, (size, None)))
    if index is not None:
        return index
    data = _beside(url, store)
    if data is not None and write_whole(cached, data):
        index = index_from(url, read_fields(cached, (size, None)))
    if index is None:
        copy = store.local(url)
        index = replace(build_index(copy), path=url)
        if os.path.getsize(copy) == size:  # else replaced since it was fetched: the copy is read on
            write_whole(cached, sidecar_bytes(index_fields(index), (size, 0)))
    return index


def remote_head(url: str, store: ShardStore) -> Head | None:
    """Count and digest of the shard at a URL by a small read; None where it has no index yet.

    Raises:
        StoreError, ConfigError, DataError: As load_remote_index.
    """
    cached, size = _cached(url, store)
    head = read_head(cached, (size, None))
    return head or head_of(_beside(url, store, HEAD_BYTES) or b"", (size, None))


def _cached(url: str, store: ShardStore) -> tuple[Path, int]:
    """Where the index of a shard is kept, and the shard's size in bytes."""
    files, path = filesystem(url)
    info = with_retries(lambda: files.info(path), url, store.retries)
    size = int(info.get("size") or 0)
    identity = "\0".join([plain_url(url), str(size), *(str(info.get(k)) for k in _MARKS)])
    name = hashlib.sha256(identity.encode()).hexdigest()[:32]
    return cache_root() / "index" / f"{name}.idx.npz", size


def _beside(url: str, store: ShardStore, count: int | None = None) -> bytes | None:
    """First `count` bytes of the sidecar beside a remote shard, None where there is none."""
    files, path = filesystem(url)
    place, mark, query = path.partition("?")
    name = f"{place}.idx.npz{mark}{query}"
    try:
        data = with_retries(lambda: files.cat_file(name, end=count), url, store.retries)
    except StoreError:
        return None
    return bytes(data)
