"""What the tools hand to each other: tables with one row a sample, and lists of samples to keep.

A sample is named by (shard, row, key): the shard's path below the folder that all shards of the
data set share, its number there by the tar index, and its key as a check.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as parquet

from clipkit.errors import DataError

KEEP_FORMAT = "clipkit-keep-1"


def shard_names(paths: Sequence[str]) -> list[str]:
    """Name of each shard in tables: its path below the common folder, "/" as separator."""
    full = [os.path.abspath(path) for path in paths]
    root = os.path.commonpath([os.path.dirname(path) for path in full]) if full else ""
    return [os.path.relpath(path, root).replace(os.sep, "/") for path in full]


def table_path(folder: Path, name: str) -> Path:
    """File of a shard's table: "a/0.tar" -> <folder>/a%2F0.tar.parquet; no two shards share one."""
    return folder / (name.replace("%", "%25").replace("/", "%2F") + ".parquet")


def write_table(path: Path, columns: Mapping[str, Any], facts: Mapping[str, str] = {}) -> None:
    """Write a parquet file whole or not at all; `facts` go into its metadata."""
    table = pyarrow.table(dict(columns))
    if facts:
        table = table.replace_schema_metadata(dict(facts))
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(table, temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def read_table(path: Path, columns: Sequence[str] | None = None) -> pyarrow.Table:
    """A parquet file, or all parquet files of a folder in the order of their names.

    Raises:
        DataError: Nothing there, not parquet, or a column is missing; names it.
    """
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path}: holds no .parquet table")
    tables = []
    for file in files:
        try:
            tables.append(parquet.read_table(file, columns=list(columns) if columns else None))
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(f"{file}: cannot be read as a table: {str(error)[:200]}") from None
        missing = set(columns or ()) - set(tables[-1].column_names)
        if missing:
            raise DataError(f"{file}: has no column '{sorted(missing)[0]}'")
    return pyarrow.concat_tables(tables, promote_options="default")


def write_keep(
    path: Path, shards: Sequence[str], rows: Sequence[int], keys: Sequence[str], tool: str
) -> None:
    """Write a keep-list: one line a sample that stays, by shard name, row and key."""
    columns = {
        "shard": pyarrow.array(shards, pyarrow.string()),
        "row": pyarrow.array(rows, pyarrow.int64()),
        "key": pyarrow.array(keys, pyarrow.string()),
    }
    write_table(path, columns, {"format": KEEP_FORMAT, "tool": tool})


def read_keep(path: Path) -> dict[str, tuple[np.ndarray, list[str]]]:
    """Shard name -> (sorted rows, their keys) of a keep-list.

    Raises:
        DataError: It cannot be read, or names a sample twice.
    """
    table = read_table(path, ("shard", "row", "key")).sort_by(
        [("shard", "ascending"), ("row", "ascending")]
    )
    shards = np.asarray(table["shard"].to_pylist(), dtype=object)
    rows = table["row"].to_numpy()
    keys = table["key"].to_pylist()
    out: dict[str, tuple[np.ndarray, list[str]]] = {}
    begins = [0, *(np.flatnonzero(shards[1:] != shards[:-1]) + 1).tolist(), len(shards)]
    for a, b in zip(begins, begins[1:]):
        if a == b:
            continue
        if (np.diff(rows[a:b]) == 0).any():
            raise DataError(f"{path}: names a sample of {shards[a]} twice")
        out[str(shards[a])] = (rows[a:b], keys[a:b])
    return out
