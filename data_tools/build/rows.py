"""What a source is turned into before it is packed: one row a sample, images by reference."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow

from clipkit.config.parts import suggest
from clipkit.errors import DataError

IMAGE_NAMES = ("image", "image_path", "filepath", "file_path", "file_name", "filename", "path")
CAPTION_NAMES = ("caption", "captions", "text", "txt", "title")
SCHEMA = pyarrow.schema(
    [
        ("key", pyarrow.string()),
        ("image", pyarrow.string()),  # an image file, or the table that holds its bytes
        ("row", pyarrow.int64()),  # number in that table, -1: a file
        ("column", pyarrow.string()),  # of that table
        ("size", pyarrow.int64()),
        ("mtime_ns", pyarrow.int64()),
        ("txt", pyarrow.string()),
        ("json", pyarrow.string()),  # "": no such member
        ("cause", pyarrow.string()),  # why it cannot be a sample, "": it can
    ]
)
_KEY = re.compile(r"[A-Za-z0-9_-]{1,90}")  # no dot or slash: webdataset cuts there


@dataclass(frozen=True)
class Columns:
    """Which fields of a record are what; those not named go into the json member.

    Attributes:
        image: Path of the image, or its bytes. None: guessed by name.
        captions: Texts or lists of texts. Empty: guessed by name.
        key: Given id. None: the number of the row is the key.
    """

    image: str | None = None
    captions: tuple[str, ...] = ()
    key: str | None = None

    def found_in(self, names: Sequence[str], where: Path) -> Columns:
        """These columns with the guessed ones filled in, and told on stderr.

        Raises:
            DataError: One is not there; names those that are.
        """
        for name in [self.image, self.key, *self.captions]:
            if name is not None and name not in names:
                raise DataError(
                    f"{where}: has no column '{name}'{suggest(name, list(names))}; "
                    f"it has {', '.join(names)}"
                )
        image = self.image or _guess(IMAGE_NAMES, names, where, "--image-column")
        captions = self.captions or (_guess(CAPTION_NAMES, names, where, "--caption-columns"),)
        guessed = [] if self.image else [f"images from '{image}'"]
        guessed += [] if self.captions else [f"captions from '{captions[0]}'"]
        if guessed:
            print(f"{where}: {', '.join(guessed)}", file=sys.stderr)
        return Columns(image, captions, self.key)


def _guess(candidates: Sequence[str], names: Sequence[str], where: Path, option: str) -> str:
    found = [name for name in candidates if name in names]
    if len(found) != 1:
        raise DataError(
            f"{where}: {'no column is' if not found else ' and '.join(found) + ' may each be'} "
            f"the one; give {option}, one of {', '.join(names)}"
        )
    return found[0]


class RowList:
    """Rows as they are found, in order; a row's number never depends on what is wrong with others.

    Args:
        root: Folder that relative image paths start from and none leads out of.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.abspath(root))
        self.columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}

    def __len__(self) -> int:
        return len(self.columns["key"])

    def add(self, **values: Any) -> None:
        """One row; what is not given is empty."""
        plain = {"key": f"{len(self):09d}", "image": "", "row": -1, "size": 0, "mtime_ns": 0}
        for name, column in self.columns.items():
            column.append(values.get(name, plain.get(name, "")))

    def add_file(self, name: str, **values: Any) -> None:
        """A row whose image is the file `name` below the root.

        Raises:
            DataError: The name is a URL or leads out of the root.
        """
        path = self._inside(name, len(self))
        try:
            stat = os.stat(path)
        except (OSError, ValueError):
            self.add(image=path, **values)  # packing says what is the matter, and does so anew
        else:
            self.add(image=path, size=stat.st_size, mtime_ns=stat.st_mtime_ns, **values)

    def _inside(self, name: str, row: int) -> str:
        if "://" in name:
            raise DataError(
                f"row {row}: '{name[:200]}' is a URL; download the images first (img2dataset)"
            )
        path = os.path.normpath(os.path.join(self.root, name))
        if os.path.commonpath([path, self.root]) != str(self.root):
            raise DataError(
                f"row {row}: '{name[:200]}' lies outside {self.root}; give the folder of the "
                f"images as --root"
            )
        return path

    def table(self) -> pyarrow.Table:
        """All rows.

        Raises:
            DataError: Text that is no UTF-8, or a given key that is unusable or not unique.
        """
        try:
            rows = pyarrow.table(self.columns, schema=SCHEMA)
        except (pyarrow.ArrowException, UnicodeEncodeError):
            bad = next(x for x in self.columns["image"] if not _is_utf8(x))
            raise DataError(f"{bad!r}: its name is no UTF-8 text; rename it") from None
        _check_keys(self.columns["key"])
        return rows


def _is_utf8(text: str) -> bool:
    try:
        return text.encode() is not None
    except UnicodeEncodeError:
        return False


def _check_keys(keys: Sequence[str]) -> None:
    seen: set[str] = set()
    for row, key in enumerate(keys):
        if not _KEY.fullmatch(key) or key in seen:
            raise DataError(
                f"row {row}: key {key[:100]!r} "
                + ("stands there twice" if key in seen else "is not made of A-Z a-z 0-9 _ -")
                + "; mend it, or leave --key-column out to number the samples"
            )
        seen.add(key)


def captions_of(record: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """All captions of a record, stripped; a field may hold one or a list of them."""
    found: list[str] = []
    for name in names:
        value = record.get(name)
        for text in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(text, str) and text.strip():
                found.append(text.strip())
    return found


def texts_of(record: Mapping[str, Any], columns: Columns) -> dict[str, str]:
    """`txt`, `json` and `cause` of a record: the first caption, and all that is no image."""
    captions = captions_of(record, columns.captions)
    rest = {
        name: _plain(value)
        for name, value in record.items()
        if name not in (columns.image, columns.key, *columns.captions)
        and not isinstance(value, bytes)
    }
    if len(captions) > 1:
        rest["captions"] = captions
    return {
        "txt": captions[0] if captions else "",
        "json": json.dumps(rest, ensure_ascii=False, sort_keys=True, default=str) if rest else "",
        "cause": "" if captions else "no_caption",
    }


def _plain(value: Any) -> Any:
    """JSON has no NaN; bytes inside lists and structs are left out."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items() if not isinstance(v, bytes)}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value if not isinstance(v, bytes)]
    return value
