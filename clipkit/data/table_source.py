"""Samples listed in a table: CSV, TSV or Parquet with one row an image file and its captions."""

from __future__ import annotations

import csv as plain_csv
import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute as compute
from pyarrow import csv, parquet

from clipkit.config.parts import suggest
from clipkit.data.bad_samples import BadSample
from clipkit.data.plain_files import check_plain, read_plain
from clipkit.errors import DataError

_SEPARATORS = (",", "\t", ";", "|")
_MAX_HEADER = 1 << 16
_ROWS = 4096  # of a Parquet file, unfolded at once
_MOST_TIMES, _ALWAYS = 1000, 1 << 30  # how far one may unfold, and what it may take in any case
_PACK = "pack it with clipkit-data build"


class TableSource:
    """A table as one part: row i names an image file and holds its captions.

    Args:
        path: .csv, .tsv or .parquet; a CSV is UTF-8 with a header, and may be quoted.
        image_column: Column of the image's path.
        caption_columns: The first one is the sample's "txt"; all columns are in its "json".
        root: Folder that image paths start from, and may not leave. None: the table's own folder;
            absolute paths are then taken as they are.
        separator: Between the columns of a CSV; None: by the suffix, or tabs where the header has
            these columns between tabs.

    Raises:
        DataError: The table cannot be read, has no row, or lacks a column.
    """

    def __init__(
        self,
        path: str,
        image_column: str = "filepath",
        caption_columns: Sequence[str] = ("title",),
        root: str | None = None,
        separator: str | None = None,
    ) -> None:
        self.name = path
        self._any_root = root is None
        self._root = os.path.abspath(root if root is not None else os.path.dirname(path))
        asked = (image_column, *caption_columns)
        table = _read(path, separator, asked)
        for column in asked:
            if column not in table.column_names:
                raise DataError(f"{path}: {_missing(column, table.schema)}")
        if not len(table):
            raise DataError(f"{path}: has a header and no rows")
        # Bytes (pictures within the table) cannot be told in JSON.
        kept = [f.name for f in table.schema if not _is_bytes(f.type)]
        self._table = table.select(kept).combine_chunks()
        self._images = _texts(table, image_column, path)
        self._captions = [_texts(table, column, path) for column in caption_columns]
        self.counts = np.array([len(table)], dtype=np.int64)
        self.manifest = _hash([self._images, *self._captions])
        self.notes: list[str] = []
        self.lost: list[tuple[str, str, int]] = []

    def part_name(self, part: int) -> str:
        """The table's path."""
        return self.name

    def part_digest(self, part: int) -> str:
        """Of its images' paths and captions."""
        return self.manifest

    def key(self, part: int, row: int) -> str:
        """The image's path as the table has it."""
        return self._images[row].as_py() or ""

    def members(
        self, part: int, row: int, wanted: tuple[str, ...], max_bytes: int
    ) -> dict[str, bytes]:
        """The image under its file's extension ("jpg" if it has none), "txt" and "json".

        Raises:
            BadSample: The image is missing, too large, no file, or outside the root.
        """
        members = {}
        image = self.key(part, row)
        extension = os.path.splitext(image)[1][1:].lower() or "jpg"
        if extension in wanted:
            members[extension] = _read_image(self._resolve(image), max_bytes)
        caption = self._captions[0][row].as_py() if self._captions else None
        if "txt" in wanted and caption is not None:
            members["txt"] = caption.encode()
        if "json" in wanted:
            values = self._table.slice(row, 1).to_pylist()[0]
            members["json"] = json.dumps(values, default=str, ensure_ascii=False).encode()
        return members

    def prefetch(self, parts: Sequence[int]) -> None:
        """Files are local: nothing to fetch."""

    def _resolve(self, image: str) -> str:
        """Path of an image file; decided by its text alone: a link may lead elsewhere.

        Raises:
            BadSample: It names nothing, or leads out of the root.
        """
        if not image:
            raise BadSample("no_image")
        if "\0" in image:
            raise BadSample("outside_root", repr(image))
        full = os.path.normpath(os.path.join(self._root, image))
        if self._any_root and os.path.isabs(image):
            return full
        if os.path.commonpath([full, self._root]) != self._root:
            raise BadSample("outside_root", image)
        return full


def _read_image(path: str, max_bytes: int) -> bytes:
    try:
        data = read_plain(path, max_bytes)
    except FileNotFoundError:
        raise BadSample("missing_file", path) from None
    except OSError as error:
        raise BadSample("unreadable_file", f"{path}: {error.strerror}") from None
    if data is None:
        raise BadSample("too_many_bytes", f"{path}: more than {max_bytes} bytes")
    return data


def _read(path: str, separator: str | None, asked: Sequence[str]) -> pyarrow.Table:
    """The table; every column of a CSV as text, just as it is written there.

    Raises:
        DataError: It cannot be read.
    """
    try:
        check_plain(path)
        if path.lower().endswith(".parquet"):
            return _read_parquet(path)
        separator = separator or _separator(path, asked)
        options = csv.ParseOptions(delimiter=separator, newlines_in_values=True)
        with csv.open_csv(path, parse_options=options) as reader:
            names = reader.schema.names
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(f"{path}: two columns are named '{twice}'; rename one")
        kinds = csv.ConvertOptions(
            column_types={name: pyarrow.string() for name in names}, strings_can_be_null=False
        )
        return csv.read_csv(path, parse_options=options, convert_options=kinds)
    except FileNotFoundError:
        raise DataError(f"{path}: does not exist") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8 text; convert it") from None
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        reason = " ".join((getattr(error, "strerror", None) or str(error)).split())[:200]
        if "UTF8" in reason or "UTF-8" in reason:
            raise DataError(f"{path}: is not UTF-8 text; convert it ({reason})") from None
        raise DataError(f"{path}: cannot be read as a table: {reason}") from None


def _read_parquet(path: str) -> pyarrow.Table:
    """Some rows at a time: a few bytes can unfold to more than memory.

    Raises:
        DataError: They do.
    """
    most = max(_ALWAYS, _MOST_TIMES * os.path.getsize(path))
    batches: list[pyarrow.RecordBatch] = []
    with parquet.ParquetFile(path) as file:
        kinds = [_plain_kind(field.type) for field in file.schema_arrow]
        schema = pyarrow.schema(list(zip(file.schema_arrow.names, kinds)))
        for batch in file.iter_batches(batch_size=_ROWS):
            columns = [c.cast(kind) for c, kind in zip(batch.columns, kinds)]
            batches.append(pyarrow.RecordBatch.from_arrays(columns, schema=schema))
            most -= batches[-1].nbytes
            if most < 0:
                raise DataError(f"{path}: unfolds to {_MOST_TIMES:,} times its size; split it")
    return pyarrow.Table.from_batches(batches, schema=schema)


def _plain_kind(kind: pyarrow.DataType) -> pyarrow.DataType:
    return kind.value_type if pyarrow.types.is_dictionary(kind) else kind


def _separator(path: str, asked: Sequence[str]) -> str:
    """A tab where the suffix says so or the asked columns stand between tabs, else a comma."""
    if path.lower().endswith(".tsv"):
        return "\t"
    with open(path, encoding="utf-8-sig", newline="") as file:
        line = file.readline(_MAX_HEADER)
    try:
        names = next(plain_csv.reader([line], delimiter="\t"), [])
    except plain_csv.Error:
        names = []
    return "\t" if "\t" in line and set(asked) <= set(names) else ","


def _missing(column: str, schema: pyarrow.Schema) -> str:
    """What to say of a column that is not there."""
    names = schema.names
    pictures = next((field.name for field in schema if _is_bytes(field.type)), None)
    if pictures is not None:
        return f"has no column '{column}', and '{pictures}' holds the files themselves; {_PACK}"
    if len(names) == 1:
        others = [repr(s) for s in _SEPARATORS if s in names[0]]
        if others:
            return (
                f"its only column is {names[0][:100]!r}; set data.table_separator, it may be "
                f"{others[0]}"
            )
    return f"has no column '{column}'{suggest(column, names)}"


def _is_bytes(kind: pyarrow.DataType) -> bool:
    if pyarrow.types.is_struct(kind):
        return any(_is_bytes(field.type) for field in kind)
    return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))


def _texts(table: pyarrow.Table, column: str, path: str) -> pyarrow.ChunkedArray:
    """A column as text.

    Raises:
        DataError: It holds something else.
    """
    try:
        return table[column].cast(pyarrow.large_string()).combine_chunks()
    except (pyarrow.ArrowException, ValueError):
        kind = table[column].type
        remedy = _PACK if _is_bytes(kind) else "name a column of text"
        raise DataError(f"{path}: column '{column}' holds {kind}, not text; {remedy}") from None


def _hash(columns: Sequence[Any]) -> str:
    """Hex digest of columns of text, no matter how they lie in memory."""
    digest = hashlib.sha256()
    for column in columns:
        lengths = compute.fill_null(compute.binary_length(column), -1)
        digest.update(lengths.to_numpy(zero_copy_only=False).astype("<i8").tobytes())
        full = pyarrow.concat_arrays([compute.fill_null(column, "")])  # offsets from 0
        data = full.buffers()[2]
        digest.update(b"" if data is None else memoryview(data)[: _end(full)])
    return digest.hexdigest()


def _end(texts: pyarrow.Array) -> int:
    offsets = np.frombuffer(texts.buffers()[1], np.int64)
    return int(offsets[texts.offset + len(texts)])
