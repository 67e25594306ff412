"""Tables of samples to filter, by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import duckdb
import pyarrow

from data_tools.filter.pool import open_pool
from data_tools.tables import table_path, write_table


def write_samples(folder: Path, captions: Sequence[str], shards: int = 2) -> Path:
    """Tables of samples k0, k1, ... dealt to shards in turn, with width = their number."""
    for shard in range(shards):
        numbers = range(shard, len(captions), shards)
        columns = {
            "shard": [f"{shard}.tar"] * len(numbers),
            "row": pyarrow.array(range(len(numbers)), pyarrow.int64()),
            "key": [f"k{i}" for i in numbers],
            "width": list(numbers),
            "caption": [captions[i] for i in numbers],
        }
        write_table(table_path(folder, f"{shard}.tar"), columns)
    return folder


def pool_of(root: Path, captions: Sequence[str], shards: int = 2) -> duckdb.DuckDBPyConnection:
    """A connection whose table `kept` holds all samples."""
    connection = open_pool([write_samples(root / "tables", captions, shards)], root / "spill")
    connection.execute("CREATE TABLE kept AS SELECT shard, row, key, caption FROM samples")
    return connection


def kept_keys(connection: duckdb.DuckDBPyConnection) -> set[str]:
    """Keys of the samples that are left."""
    return {key for (key,) in connection.execute("SELECT key FROM kept").fetchall()}
