"""The pass over one shard: a table of what its samples are compared by.

Runs in workers.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow

from clipkit.data.bad_samples import BadSample
from clipkit.data.shard_reader import RawSample, iter_samples
from clipkit.data.tar_index import load_index
from data_tools.tables import table_path, write_table

IMAGES = ("jpg", "jpeg", "png", "webp")
TABLES = "tables"
_MAX_PIXELS = 50_000_000

Values = dict[str, Any]


def hash_shard(shard: str, out: Path, *, root: str, kind: str, options: Values) -> Values:
    """Write OUT/tables/<shard>.parquet: row, key, group, and the columns of one kind.

    Args:
        shard: Path.
        out: Folder of the results.
        root: Folder that the shard's name starts below.
        kind: "bytes", "pixels", "perceptual" or "text". What cannot be hashed is null.
        options: Of the kind; "group_field" is a json field to group by.

    Returns:
        samples; unhashed: how many have nothing to compare.
    """
    name = os.path.relpath(os.path.abspath(shard), root).replace(os.sep, "/")
    columns: dict[str, list[Any]] = {"row": [], "key": [], "group": []}
    columns |= {name: [] for name in _SCHEMA[kind].names}
    hasher = _HASHERS[kind]
    wanted = IMAGES if kind != "text" else ("txt",)
    field = options.get("group_field")
    for sample in iter_samples(load_index(shard), (*wanted, "json") if field else wanted):
        try:
            values = hasher(sample, options)
        except BadSample:
            values = dict.fromkeys(_SCHEMA[kind].names)
        values |= {"row": sample.row, "key": sample.key}
        values["group"] = _group(sample, field) if field else None
        for column, content in columns.items():
            content.append(values[column])
    path = table_path(out / TABLES, name)
    fields = [("row", pyarrow.int64()), ("key", pyarrow.string()), ("group", pyarrow.string())]
    schema = pyarrow.schema([*fields, *_SCHEMA[kind]])
    write_table(path, {f.name: pyarrow.array(columns[f.name], f.type) for f in schema})
    return {
        "samples": len(columns["row"]),
        "unhashed": columns[_SCHEMA[kind].names[0]].count(None),
        "outputs": str(path.relative_to(out)),
    }


def _image_bytes(sample: RawSample) -> bytes:
    for extension in IMAGES:
        if extension in sample.members:
            return sample.members[extension]
    raise BadSample("no_image")


def _hash_bytes(sample: RawSample, options: Values) -> Values:
    return {"sha256": hashlib.sha256(_image_bytes(sample)).hexdigest()}


def _hash_pixels(sample: RawSample, options: Values) -> Values:
    from clipkit.data.decode import open_image

    image = open_image(_image_bytes(sample), _MAX_PIXELS)
    digest = hashlib.sha256(f"{image.width} {image.height} ".encode() + image.tobytes())
    return {"sha256": digest.hexdigest()}


def _hash_look(sample: RawSample, options: Values) -> Values:
    from imagehash import dhash, phash
    from PIL import ImageOps

    from clipkit.data.decode import open_image

    image = open_image(_image_bytes(sample), _MAX_PIXELS)
    hasher = {"dhash": dhash, "phash": phash}[options["hash"]]
    other = hasher(ImageOps.mirror(image)) if options["mirrored"] else None
    return {
        "hash": _bits(hasher(image).hash),
        "mirrored": None if other is None else _bits(other.hash),
    }


def _bits(bits: np.ndarray) -> int:
    """(8, 8) bool -> 64 bits."""
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _hash_text(sample: RawSample, options: Values) -> Values:
    from data_tools.dedup.text import normalise, signature

    try:
        text = normalise(sample.members["txt"].decode("utf-8"))
    except (KeyError, UnicodeDecodeError):
        raise BadSample("no_text") from None
    if not text:
        raise BadSample("no_text")
    return {"text": text, "signature": signature(text) if options["near"] else None}


def _group(sample: RawSample, field: str) -> str | None:
    try:
        record = json.loads(sample.members["json"])
        value = record[field]
    except (KeyError, ValueError, TypeError, RecursionError):
        return None
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


_SCHEMA = {
    "bytes": pyarrow.schema([("sha256", pyarrow.string())]),
    "pixels": pyarrow.schema([("sha256", pyarrow.string())]),
    "perceptual": pyarrow.schema([("hash", pyarrow.uint64()), ("mirrored", pyarrow.uint64())]),
    "text": pyarrow.schema([("text", pyarrow.string()), ("signature", pyarrow.binary())]),
}
_HASHERS: dict[str, Callable[[RawSample, Values], Values]] = {
    "bytes": _hash_bytes,
    "pixels": _hash_pixels,
    "perceptual": _hash_look,
    "text": _hash_text,
}
