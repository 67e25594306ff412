"""The table of one shard: a line a sample."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pyarrow

from clipkit.data.bad_samples import BadSample
from clipkit.data.shard_reader import RawSample, iter_samples
from clipkit.data.tar_index import TarIndex, load_index
from data_tools.stats.header import MAX_BYTES, MAX_PIXELS, check_header, read_header
from data_tools.tables import table_path, write_table

IMAGES = ("jpg", "jpeg", "png", "webp")
CAPTION = "txt"
FOLDER = "tables"
SCHEMA = pyarrow.schema(
    [
        ("shard", pyarrow.string()),
        ("row", pyarrow.int64()),
        ("key", pyarrow.string()),
        ("members", pyarrow.string()),
        ("image_bytes", pyarrow.int64()),
        ("width", pyarrow.int32()),
        ("height", pyarrow.int32()),
        ("format", pyarrow.string()),
        ("mode", pyarrow.string()),
        ("exif_orientation", pyarrow.int8()),
        ("caption", pyarrow.string()),
        ("caption_chars", pyarrow.int32()),
        ("caption_words", pyarrow.int32()),
        ("sha256", pyarrow.string()),
        ("error", pyarrow.string()),
    ]
)


def write_shard_table(shard: str, out: Path, root: str, decode: bool) -> dict[str, Any]:
    """Write OUT/tables/<shard>.parquet; a task of `map_shards`.

    Args:
        shard: Its path.
        out: Folder.
        root: Folder that the names of shards are relative to.
        decode: Decode every image as training does, to find damage behind the headers.

    Returns:
        samples, errors, damage and the name of the table.

    Raises:
        DataError: The shard cannot be read.
    """
    name = os.path.relpath(os.path.abspath(shard), root).replace(os.sep, "/")
    index = load_index(shard)
    lines = [
        {"shard": name, **_line(index, sample, decode)}
        for sample in iter_samples(index, (*IMAGES, CAPTION), MAX_BYTES)
    ]
    path = table_path(out / FOLDER, name)
    table = pyarrow.Table.from_pylist(lines, SCHEMA)
    write_table(path, dict(zip(SCHEMA.names, table.columns)))
    return {
        "samples": len(lines),
        "errors": sum(line["error"] is not None for line in lines),
        "damage": index.damage,
        "outputs": str(path.relative_to(out)),
    }


def _line(index: TarIndex, sample: RawSample, decode: bool) -> dict[str, Any]:
    """Columns of one sample; `error` is the first cause for which training would replace it."""
    first, stop = index.starts[sample.row], index.starts[sample.row + 1]
    members = sorted(index.extensions[i] for i in index.member_extension[first:stop])
    line: dict[str, Any] = {
        "row": sample.row,
        "key": _text(sample.key),
        "members": _text(" ".join(members)),
        "error": None,
    }
    for read in (_read_caption, _read_image):
        try:
            read(sample, line, decode)
        except BadSample as error:
            line["error"] = line["error"] or error.cause
    return line


def _read_image(sample: RawSample, line: dict[str, Any], decode: bool) -> None:
    large = set(sample.too_large)
    kind = next((e for e in IMAGES if e in sample.members or e in large), None)
    if kind is None:
        line["error"] = "no_image"  # said before anything about the caption
        return
    if kind in large:
        raise BadSample("too_many_bytes")
    data = sample.members[kind]
    line |= {"image_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    header = read_header(data)
    line |= {
        "width": header.width,
        "height": header.height,
        "format": header.format,
        "mode": header.mode,
        "exif_orientation": header.orientation,
    }
    check_header(header)
    if decode:
        from clipkit.data.decode import decode_image  # brings torch

        decode_image(data, max_pixels=MAX_PIXELS, max_bytes=MAX_BYTES)


def _read_caption(sample: RawSample, line: dict[str, Any], decode: bool) -> None:
    if CAPTION in sample.too_large:
        raise BadSample("too_many_bytes")
    if CAPTION not in sample.members:
        raise BadSample("no_caption")
    caption = sample.members[CAPTION].decode("utf-8", "replace").strip()
    line |= {
        "caption": caption,
        "caption_chars": len(caption),
        "caption_words": len(caption.split()),
    }
    if not caption:
        raise BadSample("empty_caption")
    try:
        sample.members[CAPTION].decode("utf-8")
    except UnicodeDecodeError:
        raise BadSample("caption_not_utf8") from None


def _text(text: str) -> str:
    """UTF-8 text: names in a tar may hold bytes that are none."""
    return text.encode("utf-8", "replace").decode("utf-8")
