"""A folder of images, captions beside them or in the names of class folders -> rows."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pyarrow

from clipkit.errors import DataError
from data_tools.build.rows import CAPTION_NAMES, RowList, captions_of

TEMPLATE = "a photo of a {c}."
# Formats that training does not read are listed too: left out, they would be lost unseen.
_IMAGES = {".jpg", ".jpeg", ".jfif", ".png", ".webp"} | {
    ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jp2", ".jxl", ".ppm"
}  # fmt: skip
_MAX_BYTES = {"txt": 65_536, "json": 1_000_000}  # what training reads


def folder_rows(
    source: Path, template: str = TEMPLATE, captions: tuple[str, ...] = ()
) -> pyarrow.Table:
    """Images at any depth, sorted by path, hidden ones left out.

    The caption of `a/b.jpg` is `a/b.txt`, or a field of `a/b.json`; both become members as they
    are. Where no image has either, the first folder below `source` is its class, "_" read as a
    blank, and `template` makes the caption.

    Args:
        source: The folder.
        template: Caption with {c}.
        captions: Fields of the json files; by default the usual names.

    Raises:
        DataError: No such folder, or no image in it.
    """
    if "{c}" not in template:
        raise DataError(f"--template '{template}' has no {{c}} for the class name")
    rows, files = RowList(source), dict(_files(source))
    images = [name for name in sorted(files) if os.path.splitext(name)[1].lower() in _IMAGES]
    if not images:
        raise DataError(f"{source}: holds no images")
    stems = [os.path.splitext(name)[0] for name in images]
    by_class = not any(f"{s}.txt" in files or f"{s}.json" in files for s in stems)
    if by_class and not any("/" in name for name in images):
        raise DataError(
            f"{source}: no image has a caption; put <name>.txt or <name>.json beside "
            f"<name>.jpg, or sort the images into <class>/ folders"
        )
    for name, stem in zip(images, stems):
        if by_class:
            label, nested, _ = name.partition("/")
            text = template.replace("{c}", label.replace("_", " ")) if nested else ""
            texts = {"txt": text, "cause": "" if text else "no_caption"}
        else:
            texts = _beside(source, stem, files, captions or CAPTION_NAMES)
        rows.add_file(name, **texts)
    return rows.table()


def _files(source: Path) -> Iterator[tuple[str, None]]:
    """Paths below `source`, with "/"."""
    if not source.is_dir():
        raise DataError(f"{source}: no such folder")
    for folder, below, names in os.walk(source):
        below[:] = [name for name in below if not name.startswith(".")]
        for name in names:
            if not name.startswith("."):
                path = os.path.relpath(os.path.join(folder, name), source)
                yield path.replace(os.sep, "/"), None


def _beside(
    source: Path, stem: str, files: dict[str, None], fields: tuple[str, ...]
) -> dict[str, str]:
    """`txt`, `json` and `cause` from the files of the same stem."""
    found = {}
    for kind in ("txt", "json"):
        found[kind] = ""
        if f"{stem}.{kind}" in files:
            path = source / f"{stem}.{kind}"
            try:
                info = path.stat()
                if not stat.S_ISREG(info.st_mode):  # a pipe or a device may never end
                    return {"txt": "", "cause": f"{kind}_unreadable"}
                if info.st_size > _MAX_BYTES[kind]:
                    return {"txt": "", "cause": f"{kind}_too_long"}
                found[kind] = path.read_bytes().decode("utf-8")
            except UnicodeDecodeError:
                return {"txt": "", "cause": f"{kind}_not_utf8"}
            except OSError:
                return {"txt": "", "cause": f"{kind}_unreadable"}
    if found["json"]:
        try:
            record = json.loads(found["json"])
        except (ValueError, RecursionError):
            return {**found, "cause": "bad_json"}
        if not found["txt"].strip() and isinstance(record, dict):
            found["txt"] = next(iter(captions_of(record, fields)), "")
    return {**found, "cause": "" if found["txt"].strip() else "no_caption"}
