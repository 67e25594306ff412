"""CSV, TSV, JSON lines and Parquet tables -> rows: paths of images, or their bytes."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.compute as compute
import pyarrow.parquet as parquet
from pyarrow import csv as arrow_csv

from clipkit.errors import DataError
from data_tools.build.pack import split_image
from data_tools.build.rows import Columns, RowList, texts_of

_BATCH = 1024


def csv_rows(source: Path, columns: Columns, root: Path, separator: str) -> pyarrow.Table:
    """A table of text with a header; quoted line breaks allowed, every value a string.

    Raises:
        DataError: Not readable as such a table, a column is missing, or the separator is wrong.
    """
    separator = "\t" if separator == "\\t" else separator
    if len(separator) != 1:
        raise DataError(f"--separator {separator!r}: give one character")
    rows = RowList(root)
    try:
        with source.open(encoding="utf-8-sig", newline="") as file:
            names = next(csv.reader(file, delimiter=separator), [])
        other = next((sign for sign in "\t;|," if len(names) == 1 and sign in names[0]), None)
        if other:
            raise DataError(
                f"{source}: its columns are not split by {separator!r}; give --separator {other!r}"
            )
        columns = columns.found_in(names, source)
        reader = arrow_csv.open_csv(
            source,
            parse_options=arrow_csv.ParseOptions(delimiter=separator, newlines_in_values=True),
            # by default "NA" would be no caption, and "007" the number 7
            convert_options=arrow_csv.ConvertOptions(
                column_types={name: pyarrow.string() for name in names}, strings_can_be_null=False
            ),
        )
        for batch in reader:
            for record in batch.to_pylist():
                _add(rows, record, columns, record.get(str(columns.image)))
    except (OSError, UnicodeDecodeError, csv.Error, pyarrow.ArrowException) as error:
        raise DataError(f"{source}: cannot be read as a table: {str(error)[:200]}") from None
    return rows.table()


def jsonl_rows(source: Path, columns: Columns, root: Path) -> pyarrow.Table:
    """One JSON object a line; a line that is none is a row that cannot be a sample.

    Raises:
        DataError: No such file, or a column is missing from the first object.
    """
    rows, known = RowList(root), False
    try:
        with source.open("rb") as file:
            for line in file:
                if not line.strip():
                    continue
                record = _json_object(line)
                if record is None:
                    rows.add(image=str(source), cause="bad_json")
                    continue
                if not known:
                    columns, known = columns.found_in(list(record), source), True
                _add(rows, record, columns, record.get(str(columns.image)))
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {error.strerror}") from None
    return rows.table()


def _json_object(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _add(rows: RowList, record: dict[str, Any], columns: Columns, image: Any) -> None:
    """A row of a record; `image` is a path, or where in a table its bytes are."""
    values: dict[str, Any] = dict(texts_of(record, columns))
    if columns.key is not None:
        values["key"] = str(record.get(columns.key, ""))
    if isinstance(image, dict):
        rows.add(column=columns.image, **image, **values)
    elif isinstance(image, str) and image:
        rows.add_file(image, **values)
    else:
        rows.add(**{**values, "cause": "no_image"})


def parquet_rows(source: Path, columns: Columns, root: Path) -> pyarrow.Table:
    """A file, or all *.parquet below a folder by name: paths, bytes, or {bytes, path} as in Hugging
    Face data sets.

    Raises:
        DataError: Not readable, or a column is missing.
    """
    files = sorted(source.rglob("*.parquet")) if source.is_dir() else [source]
    if not files:
        raise DataError(f"{source}: holds no .parquet table")
    rows = RowList(root)
    for path in files:
        try:
            with parquet.ParquetFile(path) as file:
                columns = columns.found_in(file.schema_arrow.names, path)
                stamp = os.stat(path).st_mtime_ns
                for number, (record, name, size) in enumerate(_records(file, str(columns.image))):
                    if size is None:
                        _add(rows, record, columns, name)
                    else:
                        place = {"image": os.path.abspath(path), "row": number}
                        _add(rows, record, columns, place | {"size": size, "mtime_ns": stamp})
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(f"{path}: cannot be read as a table: {str(error)[:200]}") from None
    return rows.table()


def _records(
    file: parquet.ParquetFile, image: str
) -> Iterator[tuple[dict[str, Any], Any, int | None]]:
    """(record without its image, path of the image, bytes of the image where it is in the table)"""
    for batch in file.iter_batches(batch_size=_BATCH):
        paths, data = split_image(batch.column(image))
        nothing = [None] * len(batch)
        sizes = nothing if data is None else compute.binary_length(data).to_pylist()
        yield from zip(
            batch.drop_columns([image]).to_pylist(),
            nothing if paths is None else paths.to_pylist(),
            sizes,
        )
