"""Rows of an embeddings folder carry the names that tables of the same shards use."""

import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest

from clipkit.errors import DataError
from clipkit.eval.embedding_folder import metadata_path
from data_tools.embeddings import table_of
from data_tools.tables import shard_names
from tests.eval.test_embedding_folder import write_folder

PATHS = ["/d/b/0.tar", "/d/a/0.tar"]


def embedded(root: Path, shards: list[str], samples: list[int], lengths: list[int]) -> Path:
    """A folder whose rows are these samples of these shards."""
    features = np.eye(4)[np.arange(len(shards)) % 4]
    write_folder(root, features, lengths=lengths, shards=[{"path": p} for p in PATHS])
    first = 0
    for number, count in enumerate(lengths):
        rows = slice(first, first + count)
        path = metadata_path(root, number)
        table = parquet.read_table(path)
        for name, values in (("shard", shards), ("sample", samples)):
            column = table.column_names.index(name)
            table = table.set_column(column, name, pyarrow.array(values[rows]))
        parquet.write_table(table, path)
        first += count
    return root


def test_rows_carry_the_names_of_tables(tmp_path: Path) -> None:
    shards = [PATHS[0], PATHS[0], PATHS[1], PATHS[1], PATHS[0]]
    folder = embedded(tmp_path, shards, [0, 2, 0, 5, 7], [3, 2])
    found = table_of(folder)
    names = dict(zip(PATHS, shard_names(PATHS)))
    assert (
        found["shard"].to_pylist()
        == [names[s] for s in shards]
        == ["b/0.tar"] * 2 + ["a/0.tar"] * 2 + ["b/0.tar"]
    )
    assert found["row"].type == pyarrow.int64() and found["row"].to_pylist() == [0, 2, 0, 5, 7]
    assert found["key"].to_pylist() == [f"k{i}" for i in range(5)]
    assert found.column_names == ["shard", "row", "key"]


def test_one_shard_is_its_base_name(tmp_path: Path) -> None:
    folder = embedded(tmp_path, ["/d/b/0.tar"], [3], [1])
    facts = json.loads((folder / "index.json").read_text())
    facts["shards"] = facts["shards"][:1]
    (folder / "index.json").write_text(json.dumps(facts))
    assert table_of(folder)["shard"].to_pylist() == ["0.tar"]


def test_damage_is_named(tmp_path: Path) -> None:
    folder = embedded(tmp_path / "a", [PATHS[0], "/elsewhere/9.tar"], [0, 1], [2])
    with pytest.raises(DataError, match="metadata_0.*names a shard"):
        table_of(folder)
    folder = embedded(tmp_path / "b", [PATHS[0]] * 2, [0, 1], [2])
    parquet.write_table(parquet.read_table(metadata_path(folder, 0))[:1], metadata_path(folder, 0))
    with pytest.raises(DataError, match="metadata_0"):
        table_of(folder)
    metadata_path(folder, 0).write_text("no table")
    with pytest.raises(DataError, match="metadata_0"):
        table_of(folder)
    write_folder(tmp_path / "c", np.eye(4))
    with pytest.raises(DataError, match="lists no shards"):
        table_of(tmp_path / "c")
    with pytest.raises(DataError, match="no index there"):
        table_of(tmp_path)
