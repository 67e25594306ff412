"""Index of a remote shard: from its own cache, from `<url>.idx.npz`, or by fetching the shard."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from typing import Any

from clipkit.data.content_hash import cache_root
from clipkit.data.index_sidecar import read_fields, sidecar_bytes, write_whole
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
    files, path = filesystem(url)
    info = with_retries(lambda: files.info(path), url, store.retries)
    size = int(info.get("size") or 0)
    identity = "\0".join([plain_url(url), str(size), *(str(info.get(k)) for k in _MARKS)])
    name = hashlib.sha256(identity.encode()).hexdigest()[:32]
    cached = cache_root() / "index" / f"{name}.idx.npz"
    index = index_from(url, read_fields(cached, (size, None)))
    if index is not None:
        return index
    data = _beside(files, path, url, store)
    if data is not None and write_whole(cached, data):
        index = index_from(url, read_fields(cached, (size, None)))
    if index is None:
        copy = store.local(url)
        index = replace(build_index(copy), path=url)
        if os.path.getsize(copy) == size:  # else replaced since it was fetched: the copy is read on
            write_whole(cached, sidecar_bytes(index_fields(index), (size, 0)))
    return index


def _beside(files: Any, path: str, url: str, store: ShardStore) -> bytes | None:
    """Content of the sidecar beside a remote shard, None where there is none."""
    place, mark, query = path.partition("?")
    try:
        data = with_retries(
            lambda: files.cat_file(f"{place}.idx.npz{mark}{query}"), url, store.retries
        )
    except StoreError:
        return None
    return bytes(data)
