"""Which samples the rows of an embeddings folder are, in the names that tables use."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pyarrow.compute as compute
import pyarrow.parquet as parquet

from clipkit.errors import DataError
from clipkit.eval.embedding_folder import EmbeddingFolder, metadata_path, open_embeddings
from data_tools.tables import shard_names


def table_of(folder: EmbeddingFolder | str | Path) -> pyarrow.Table:
    """Columns shard, row, key of an embeddings folder; row i describes row i of the features.

    Raises:
        DataError: The folder is missing or damaged.
    """
    found = folder if isinstance(folder, EmbeddingFolder) else open_embeddings(folder)
    names = _names(found)
    parts = []
    for number, rows in enumerate(found.file_rows):
        path = metadata_path(found.root, number)
        try:
            part = parquet.read_table(path, columns=["shard", "sample", "key"])
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(f"{path}: cannot be read: {str(error)[:200]}") from None
        if len(part) != rows or part.num_columns != 3:
            raise DataError(f"{path}: is not the table of these features; embed the shards anew")
        places = compute.index_in(part["shard"], pyarrow.array(list(names)))
        if places.null_count:
            raise DataError(
                f"{path}: names a shard that index.json does not; embed the shards anew"
            )
        shards = pyarrow.array(list(names.values()), pyarrow.string()).take(places.combine_chunks())
        parts.append(pyarrow.table([shards, part["sample"], part["key"]], ["shard", "row", "key"]))
    return pyarrow.concat_tables(parts)


def _names(folder: EmbeddingFolder) -> dict[str, str]:
    """Path of each embedded shard -> its name in tables."""
    paths = [
        s["path"] for s in folder.facts.get("shards", []) if isinstance(s, dict) and "path" in s
    ]
    if not paths:
        raise DataError(f"{folder.root}: index.json lists no shards; embed them anew")
    return dict(zip(paths, shard_names(paths)))
