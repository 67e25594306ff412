"""Packs one planned shard: reads its images, checks them, writes the tar and what was left out.

Runs in workers: imports no torch.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute as compute
import pyarrow.parquet as parquet
from PIL import Image, UnidentifiedImageError

from clipkit.data.bad_samples import BadSample
from clipkit.data.shard_writer import write_shard
from clipkit.errors import DataError
from data_tools.build.plan import PLAN, shard_path
from data_tools.tables import read_table, write_table

CHECKS = ("decode", "header")
_FORMATS = ("JPEG", "PNG", "WEBP")
_EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}  # MPO: JPEG and more
_MAX_BYTES, _MAX_PIXELS = 50_000_000, 50_000_000  # what training takes by default

Row = dict[str, Any]


def rejects_path(out: Path, plan: str) -> Path:
    """Table of what a shard had to leave out; there only where there is something."""
    return out / PLAN / "rejects" / Path(plan).name


def pack_shard(shard: str, out: Path, *, prefix: str, check: str) -> dict[str, Any]:
    """Write OUT/<prefix>-<number>.tar of a plan file.

    Args:
        shard: The plan file.
        out: Folder of the shards.
        prefix: Of their names.
        check: "decode" reads each image in full, "header" only its header.

    Returns:
        samples, rejects and bytes; sha256 of the tar.

    Raises:
        DataError: The tar cannot be written.
    """
    rows = read_table(Path(shard)).to_pylist()
    rejects: list[tuple[int, BadSample]] = []
    path, table = shard_path(out, prefix, shard), rejects_path(out, shard)
    facts = write_shard(path, _samples(rows, check, rejects))
    if not facts.samples:
        path.unlink()
    if rejects:
        columns: dict[str, list[Any]] = {"row": [row for row, _ in rejects]}
        columns |= {name: [rows[row][name] for row, _ in rejects] for name in ("key", "image")}
        columns |= {"cause": [e.cause for _, e in rejects], "detail": [str(e) for _, e in rejects]}
        write_table(table, columns)
    else:
        table.unlink(missing_ok=True)
    return {
        "samples": facts.samples,
        "rejects": len(rejects),
        "bytes": facts.bytes if facts.samples else 0,
        "sha256": facts.sha256,
        "outputs": [str(file.relative_to(out)) for file in (path, table) if file.exists()],
    }


def _samples(
    rows: list[Row], check: str, rejects: list[tuple[int, BadSample]]
) -> Iterator[tuple[str, dict[str, bytes]]]:
    stored = _stored_images(rows)
    for number, row in enumerate(rows):
        try:
            extension, data = read_image(row, check, stored)
        except BadSample as error:
            rejects.append((number, error))
            continue
        members = {extension: data, "txt": row["txt"].encode()}
        if row["json"]:
            members["json"] = row["json"].encode()
        yield row["key"], members


def is_mended(plan: str, out: Path, check: str) -> bool:
    """Whether an image that the shard had to leave out can be read by now."""
    path = rejects_path(out, plan)
    if not path.exists():
        return False
    rows = read_table(Path(plan)).take(read_table(path)["row"]).to_pylist()
    stored = _stored_images(rows)
    for row in rows:
        try:
            read_image(row, check, stored)
        except BadSample:
            continue
        return True
    return False


def read_image(row: Row, check: str, stored: dict[tuple[str, int], bytes]) -> tuple[str, bytes]:
    """(extension by its content, bytes) of a row's image.

    Raises:
        BadSample: It is missing, unreadable, too large, or of a format that training does not read.
    """
    if row["cause"]:
        raise BadSample(row["cause"])
    data = stored.get((row["image"], row["row"])) if row["row"] >= 0 else _read(row["image"])
    if data is None:
        raise BadSample("unreadable", "gone from its table")
    if len(data) > _MAX_BYTES:
        raise BadSample("too_many_bytes", f"{len(data)} bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
            if image.width * image.height > _MAX_PIXELS:
                raise BadSample("too_many_pixels", f"{image.width} x {image.height}")
            if check == "decode":
                image.load()
    except BadSample:
        raise
    except UnidentifiedImageError:  # its text holds an address
        raise BadSample("unreadable_image", "no JPEG, PNG or WebP that can be read") from None
    except Exception as error:  # on hostile bytes Pillow's plugins raise whatever their parsers do
        raise BadSample("unreadable_image", str(error)[:200]) from None
    return _EXTENSIONS[str(image.format)], data


def _read(path: str) -> bytes:
    try:
        if not os.path.isfile(path):  # nor wait for a pipe
            raise BadSample("missing", "no such file")
        if os.path.getsize(path) > _MAX_BYTES:
            raise BadSample("too_many_bytes", f"{os.path.getsize(path)} bytes")
        return Path(path).read_bytes()
    except OSError as error:
        raise BadSample("unreadable", error.strerror or str(error)) from None


def _stored_images(rows: list[Row]) -> dict[tuple[str, int], bytes]:
    """(table, row) -> bytes of the images that lie in tables, each row group read once."""
    found: dict[tuple[str, int], bytes] = {}
    wanted: dict[str, list[Row]] = {}
    for row in rows:
        if row["row"] >= 0 and not row["cause"]:
            wanted.setdefault(row["image"], []).append(row)
    for path, own in wanted.items():
        try:
            _read_groups(path, own, found)
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(f"{path}: cannot be read as a table: {str(error)[:200]}") from None
    return found


def _read_groups(path: str, rows: list[Row], found: dict[tuple[str, int], bytes]) -> None:
    numbers, column = np.sort([row["row"] for row in rows]), rows[0]["column"]
    with parquet.ParquetFile(path) as file:
        first = 0
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            own = numbers[(numbers >= first) & (numbers < first + count)]
            if len(own):
                table = file.read_row_group(group, columns=[column])
                _, data = split_image(table.take(own - first)[column].combine_chunks())
                values = [None] * len(own) if data is None else data.to_pylist()
                found |= {(path, int(n)): v for n, v in zip(own, values) if v is not None}
            first += count


def split_image(column: Any) -> tuple[Any, Any]:
    """(paths, bytes) of an image column, None for what it has not: paths, bytes, or structs of both
    as Hugging Face data sets have them.
    """
    if pyarrow.types.is_struct(column.type):
        names = [field.name for field in column.type]
        return (
            compute.struct_field(column, "path") if "path" in names else None,
            compute.struct_field(column, "bytes") if "bytes" in names else None,
        )
    if pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type):
        return column, None
    return None, column
