"""Which sample of the loader a row of embeddings is.

A sample's id is the number of samples in the shards before its own, in the order of the list, plus
its place in its shard; so `clipkit.data.mixture` counts too.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.compute as compute

from clipkit.data.content_hash import file_hash
from clipkit.data.tar_index import load_index
from clipkit.errors import DataError
from clipkit.eval.embedding_folder import EmbeddingFolder


class SampleIds(NamedTuple):
    """Ids of embedded samples.

    Attributes:
        ids: (rows,) int64, of each row; samples without a usable image have no row.
        shards: {"path", "rows", "sha256", "index"} of each shard, in order; "rows" counts all its
            samples, "index" is the digest of its index, "" where the shard is not there.
        total: Samples of all shards.
    """

    ids: np.ndarray
    shards: list[dict[str, Any]]
    total: int


def sample_ids(folder: EmbeddingFolder, table: pyarrow.Table) -> SampleIds:
    """Ids of all rows.

    Args:
        folder: The embeddings.
        table: Its columns shard (path) and row, row for row.

    Raises:
        DataError: index.json and the metadata do not fit each other, or a shard has changed.
    """
    try:
        shards = [
            {"path": s["path"], "rows": int(s["samples"]), "sha256": s.get("sha256", "")}
            for s in folder.facts.get("shards", [])
        ]
    except (KeyError, TypeError, ValueError):
        shards = []
    if not shards:
        raise DataError(f"{folder.root}: index.json lists no shards; embed them anew")
    counts = np.array([shard["rows"] for shard in shards])
    places = compute.index_in(table["shard"], pyarrow.array([s["path"] for s in shards]))
    rows = table["row"].to_numpy()
    if places.null_count or (rows >= counts[places.to_numpy()]).any():
        raise DataError(f"{folder.root}: its rows are not of the shards in index.json; embed anew")
    with ThreadPoolExecutor() as pool:
        for shard, checksum in zip(shards, pool.map(_index_digest, shards)):
            shard["index"] = checksum
    first = np.cumsum(counts) - counts
    return SampleIds(first[places.to_numpy()] + rows, shards, int(counts.sum()))


def _index_digest(shard: dict[str, Any]) -> str:
    path = shard["path"]
    try:
        content = file_hash(path)  # known from the embedding, so read again only elsewhere
    except OSError:  # the embeddings were moved to where the shards are not
        return ""
    if content != shard["sha256"]:
        raise DataError(f"shard '{path}' has changed since it was embedded; embed it anew")
    return load_index(path).checksum


def base_names(paths: pyarrow.ChunkedArray) -> pyarrow.ChunkedArray:
    """Last part of each path."""
    known = compute.unique(paths)
    names = pyarrow.array([Path(path).name for path in known.to_pylist()], pyarrow.string())
    return names.take(compute.index_in(paths, known).combine_chunks())
