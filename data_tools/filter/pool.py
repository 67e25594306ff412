"""Tables of samples, joined, behind a duckdb connection that can reach nothing else."""

# ruff: noqa: S608 -- what goes into SQL text are own names and numbers

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import duckdb
import pyarrow
import pyarrow.dataset as dataset
import pyarrow.parquet as parquet

from clipkit.errors import DataError

_NAME = ("shard", "row", "key")


def open_pool(
    tables: Sequence[Path], spill: Path, limit: int | None = None
) -> duckdb.DuckDBPyConnection:
    """A connection with one view, `samples`: what all tables hold, their columns joined.

    It reads the tables through pyarrow and has no access to files, extensions or settings.

    Args:
        tables: Parquet files, folders of them, or folders with such a folder `tables`.
        spill: Folder that duckdb may fill when memory is short.
        limit: Only the first so many samples by shard and row.

    Raises:
        DataError: A table is missing or damaged, names a sample twice or by another key, or they
            share no sample.
    """
    connection = duckdb.connect(
        config={
            "temp_directory": str(spill),
            "autoload_known_extensions": False,
            "autoinstall_known_extensions": False,
            "python_enable_replacements": False,
            "preserve_insertion_order": False,
        }
    )
    pools = [_dataset(path) for path in tables]
    for number, pool in enumerate(pools):
        connection.register(f"table{number}", pool)
    for setting in ("enable_external_access = false", "lock_configuration = true"):
        connection.execute(f"SET {setting}")
    for number, path in enumerate(tables):
        check_names(connection, f"table{number}", str(path))
        if number:
            check_keys(connection, "table0", f"table{number}", f"{tables[0]} and {path}")
    connection.execute(_view([pool.schema.names for pool in pools], limit))
    return connection


def check_names(connection: duckdb.DuckDBPyConnection, table: str, where: str) -> None:
    """See that every sample of a table is named, and once.

    Raises:
        DataError: One is not.
    """
    query = f"SELECT shard, row FROM {table} GROUP BY ALL HAVING count(*) > 1 OR bool_or("
    found = connection.execute(f"{query}shard IS NULL OR row IS NULL OR key IS NULL) LIMIT 1")
    for shard, row in found.fetchall():
        raise DataError(
            f"{where}: sample {row} of shard '{shard}' stands there twice or without a key; "
            f"write the table anew"
        )


def check_keys(connection: duckdb.DuckDBPyConnection, one: str, other: str, where: str) -> None:
    """See that two tables share samples, and call them by the same keys.

    Raises:
        DataError: They do not.
    """
    shared, bad = connection.execute(
        f"SELECT count(*), arg_min([a.shard, a.row::VARCHAR, a.key, b.key], (a.shard, a.row))"
        f" FILTER (a.key <> b.key) FROM {one} a JOIN {other} b USING (shard, row)"
    ).fetchall()[0]
    if bad:
        raise DataError(
            f"{where}: sample {bad[1]} of shard '{bad[0]}' is '{bad[2][:80]}' in one and "
            f"'{bad[3][:80]}' in the other; they come from different shards"
        )
    if not shared:
        raise DataError(
            f"{where}: share no sample; make both from the same shards, named together (a shard's "
            f"name is its path below the folder that all of them share)"
        )


def count(connection: duckdb.DuckDBPyConnection, table: str) -> int:
    """Rows of a table."""
    return int(connection.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0])


def quoted(name: str) -> str:
    """A column's name in SQL."""
    return '"' + name.replace('"', '""') + '"'


def _dataset(path: Path) -> dataset.Dataset:
    folder = path / "tables" if (path / "tables").is_dir() else path
    files = sorted(folder.glob("*.parquet")) if folder.is_dir() else [folder]
    if not files:
        raise DataError(f"{path}: holds no .parquet table")
    schemas = []
    for file in files:
        try:
            schemas.append(parquet.read_schema(file))
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(f"{file}: cannot be read as a table: {str(error)[:200]}") from None
        if missing := set(_NAME) - set(schemas[-1].names):
            raise DataError(
                f"{file}: has no column '{sorted(missing)[0]}'; is it a table of samples?"
            )
    try:
        schema = pyarrow.unify_schemas(schemas, promote_options="default")
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: its tables differ: {str(error)[:200]}") from None
    return dataset.dataset(files, schema=schema, format="parquet")


def _view(schemas: Sequence[Sequence[str]], limit: int | None) -> str:
    """The join as SQL; of columns that several tables have, the first table's."""
    seen: set[str] = set()
    columns = []
    for number, names in enumerate(schemas):
        new = [name for name in names if name.lower() not in seen]
        columns += [f"table{number}.{quoted(name)}" for name in new]
        seen |= {name.lower() for name in new}
    joins = [f" JOIN table{n} USING (shard, row)" for n in range(1, len(schemas))]
    first = f" ORDER BY shard, row LIMIT {limit}" if limit is not None else ""
    return f"CREATE VIEW samples AS SELECT {', '.join(columns)} FROM table0{''.join(joins)}{first}"
