"""Tables are joined by name with keys checked, and their connection reaches nothing else."""

from pathlib import Path

import duckdb
import pyarrow
import pytest

from clipkit.errors import DataError
from data_tools.filter.pool import count, open_pool
from data_tools.tables import write_keep, write_table
from tests.data_tools.filter.pools import write_samples

CAPTIONS = ["a", "b", "c", "d", "e"]


def test_samples_are_those_that_all_tables_hold(tmp_path: Path) -> None:
    tables = write_samples(tmp_path / "stats" / "tables", CAPTIONS)
    extra = {"shard": ["0.tar", "1.tar"], "row": [2, 0], "key": ["k4", "k1"],
             "Width": [-1, -1], "score": [0.5, 0.25]}  # fmt: skip
    write_table(tmp_path / "extra.parquet", extra)
    connection = open_pool([tmp_path / "stats", tmp_path / "extra.parquet"], tmp_path / "spill")
    found = connection.execute("SELECT key, width, score FROM samples ORDER BY key").fetchall()
    assert found == [("k1", 1, 0.25), ("k4", 4, 0.5)]
    assert connection.table("samples").columns == [
        "shard", "row", "key", "width", "caption", "score"
    ]  # fmt: skip
    assert count(open_pool([tables], tmp_path / "spill"), "samples") == 5
    first = open_pool([tables], tmp_path / "spill", limit=2)
    assert first.execute("SELECT key FROM samples ORDER BY row").fetchall() == [("k0",), ("k2",)]


def test_a_column_that_one_shard_has_only_nulls_in(tmp_path: Path) -> None:
    for number, error in enumerate(([None], ["no_image"])):
        columns = {"shard": [f"{number}"], "row": [0], "key": ["k"], "error": error}
        write_table(tmp_path / f"{number}.parquet", columns)
    connection = open_pool([tmp_path], tmp_path / "spill")
    assert connection.execute("SELECT shard FROM samples WHERE error IS NULL").fetchall() == [
        ("0",)
    ]


def named(shard: str, rows: list[int], keys) -> dict:
    """Columns that name samples of one shard."""
    return {"shard": [shard] * len(rows), "row": rows, "key": keys}


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    good = write_samples(tmp_path / "good", CAPTIONS)
    nulls = pyarrow.array([None], pyarrow.string())
    cases: list[tuple[dict, str]] = [
        (named("0.tar", [1], ["k9"]), "sample 1 of shard '0.tar' is 'k2'.*'k9'"),
        (named("x.tar", [1], ["k2"]), "share no sample"),
        (named("0.tar", [1, 1], ["k2", "k2"]), "sample 1 of shard '0.tar'.*twice"),
        (named("0.tar", [1], nulls), "without a key"),
        ({"shard": ["0.tar"], "row": [1]}, "no column 'key'"),
    ]
    for number, (columns, message) in enumerate(cases):
        path = tmp_path / f"{number}.parquet"
        write_table(path, columns)
        with pytest.raises(DataError, match=message) as error:
            open_pool([good, path], tmp_path / "spill")
        assert "\n" not in str(error.value) and path.name in str(error.value)
    (tmp_path / "bad.parquet").write_text("no table")
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "bad.parquet", tmp_path / "empty", tmp_path / "absent"):
        with pytest.raises(DataError, match=path.name):
            open_pool([path], tmp_path / "spill")


def test_nothing_else_can_be_reached(tmp_path: Path) -> None:
    secret = tmp_path / "secret.parquet"
    write_keep(secret, ["0.tar"], [0], ["k0"], "test")
    connection = open_pool([write_samples(tmp_path / "good", CAPTIONS)], tmp_path / "spill")
    for query in (
        f"SELECT * FROM '{secret}'",
        f"SELECT * FROM read_text('{secret}')",
        f"COPY samples TO '{tmp_path}/out.csv'",
        f"ATTACH '{tmp_path}/other.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "SET lock_configuration = false",
        "SELECT * FROM secret",
    ):
        with pytest.raises(duckdb.Error):
            connection.execute(query).fetchall()
    assert not (tmp_path / "out.csv").exists()


def test_memory_may_spill_to_the_given_folder(tmp_path: Path) -> None:
    connection = open_pool([write_samples(tmp_path / "good", CAPTIONS)], tmp_path / "spill")
    found = connection.execute("SELECT current_setting('temp_directory')").fetchone()
    assert found == (str(tmp_path / "spill"),)
