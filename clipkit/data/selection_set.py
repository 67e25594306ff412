"""Selection sets: which of these texts belongs to this image, and the other way round.

<root>/<split>/selection.jsonl holds one item a line:

    {"id": "swap_att/7", "images": ["a.jpg"], "texts": ["a red dog", "a blue dog"], "answer": 0,
     "tags": ["swap_att"]}

| images | texts | answer                                                    |
|--------|-------|-----------------------------------------------------------|
| 1      | K     | index of the right text                                   |
| K      | 1     | index of the right image                                  |
| N      | N     | for each image the index of its text, no text twice       |

An image is the key of a sample where <root>/<split>/ holds shards, else a path below <root>, or
{"file": path, "box": [x, y, width, height]}. More keys in an item are ignored.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from clipkit.data.content_hash import file_hash
from clipkit.data.eval_sets import types_of
from clipkit.data.image_files import Crop, ImageFiles
from clipkit.data.wds_folder import KINDS, WdsFolder, open_folder
from clipkit.errors import DataError

_SURROGATE = re.compile("[\ud800-\udfff]")
FILE = "selection.jsonl"


@dataclass(frozen=True)
class SelectionItem:
    """One question.

    Attributes:
        id: Unique in its set.
        images: Names in the set's image source.
        files: The file (or sample) of each image; crops of one file share it.
        texts: Candidates, or the one text.
        answer: (index,) of the right text or image; with N images and N texts, N indices: the
            text of each image.
        tags: What the item tests; may be empty.
    """

    id: str
    images: tuple[str, ...]
    files: tuple[str, ...]
    texts: tuple[str, ...]
    answer: tuple[int, ...]
    tags: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """(images, texts)."""
        return len(self.images), len(self.texts)


@dataclass
class SelectionSet:
    """Items and the images they name.

    Attributes:
        root: Its folder.
        split: Folder below it that holds the items.
        items: In the file's order.
        source: The images. Shards are taken whole, so that a retrieval task on the same folder
            shares their features.
    """

    root: Path
    split: str
    items: list[SelectionItem]
    source: ImageFiles | WdsFolder

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def rows(self) -> dict[str, int]:
        """Image name -> row in the source."""
        names = self.source.keys if isinstance(self.source, WdsFolder) else self.source.names
        return {str(name): row for row, name in enumerate(names)}

    @cached_property
    def identity(self) -> str:
        """Hash of the items and the images."""
        items = file_hash(self.root / self.split / FILE)
        return hashlib.sha256(f"{items}{self.source.identity}".encode()).hexdigest()


def open_selection(root: str | Path, split: str = "test") -> SelectionSet:
    """Open a selection set.

    Raises:
        DataError: The items are missing or one is wrong (with its line), or an image is missing.
    """
    root = Path(root)
    path = root / split / FILE
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        what = "no such file" if isinstance(error, FileNotFoundError) else error
        raise DataError(f"selection set '{root}': {path}: {what}; write one item a line") from None
    sharded = any((root / split).glob("*.tar"))
    boxes: dict[str, Crop] = {}
    items: dict[str, SelectionItem] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        item = _item(line, f"{path}, line {number}", boxes, sharded)
        if item.id in items:
            raise DataError(f"{path}, line {number}: id '{item.id[:80]}' occurs twice")
        items[item.id] = item
    if not items:
        raise DataError(f"{path}: holds no items")
    found = list(items.values())
    names = [name for item in found for name in item.images]
    source = _shards(root, split, names, path) if sharded else ImageFiles(root, names, boxes)
    return SelectionSet(root, split, found, source)


def _shards(root: Path, split: str, names: list[str], path: Path) -> WdsFolder:
    """The split's shards, checked to hold every sample that is named, once."""
    if not set(KINDS) & set(types_of(root, split)):
        raise DataError(
            f"selection set '{root}': its shards are of no known type; write 'retrieval' into "
            f"{root / 'dataset_type.txt'}"
        )
    folder = open_folder(root, split)
    keys = {str(key) for key in folder.keys}
    missing = next((name for name in names if name not in keys), None)
    if missing is not None:
        raise DataError(f"{path}: no sample '{missing[:80]}' in the shards of {root / split}")
    return folder


def _item(line: str, where: str, boxes: dict[str, Crop], sharded: bool) -> SelectionItem:
    """Read one line; crops are noted in `boxes`."""
    try:
        raw = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: is no JSON: {str(error)[:100]}") from None
    if not isinstance(raw, dict):
        raise DataError(f"{where}: is no JSON object")
    name = raw.get("id")
    if not isinstance(name, str) or not name:
        raise DataError(f"{where}: 'id' must be a non-empty string")
    texts, tags = _strings(raw, "texts", where), _strings({"tags": [], **raw}, "tags", where)
    entries = raw.get("images")
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{where}: 'images' must be a list of names")
    read = [_image(entry, where, boxes, sharded) for entry in entries]
    answer = _answer(raw.get("answer"), len(read), len(texts), where)
    images, files = (tuple(side) for side in zip(*read))
    return SelectionItem(name, images, files, texts, answer, tags)


def _strings(raw: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = raw.get(key)
    if not isinstance(value, list) or not all(map(_is_text, value)):
        raise DataError(f"{where}: '{key}' must be a list of non-empty strings")
    return tuple(value)


def _is_text(value: Any) -> bool:
    """A string with something in it that UTF-8 can hold: JSON allows half a surrogate pair."""
    return isinstance(value, str) and bool(value.strip()) and not _SURROGATE.search(value)


def _image(entry: Any, where: str, boxes: dict[str, Crop], sharded: bool) -> tuple[str, str]:
    """(name, file) of an entry of "images"."""
    if isinstance(entry, str) and entry:
        return entry, entry
    if not isinstance(entry, dict) or set(entry) != {"file", "box"}:
        raise DataError(f"{where}: an image must be a name or {{'file': ..., 'box': [...]}}")
    file, box = entry["file"], entry["box"]
    if sharded:
        raise DataError(f"{where}: a box needs an image file; the images of this set are in shards")
    if not isinstance(file, str) or not _is_box(box):
        raise DataError(
            f"{where}: a box must be [x, y, width, height] in pixels, with a size above 0"
        )
    # No file name has a zero byte, so a crop cannot take the place of a file.
    name = f"{file}\0{','.join(map(str, box))}"
    boxes[name] = Crop(file, (box[0], box[1], box[2], box[3]))
    return name, file


def _is_box(box: Any) -> bool:
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(type(v) in (int, float) and math.isfinite(v) and abs(v) < 1e9 for v in box)
        and box[2] > 0
        and box[3] > 0
    )


def _answer(answer: Any, images: int, texts: int, where: str) -> tuple[int, ...]:
    """The answer, checked against the number of images and texts."""
    if images == texts and images > 1:
        whole = isinstance(answer, list) and all(type(a) is int for a in answer)
        if not whole or sorted(answer) != list(range(texts)):
            raise DataError(
                f"{where}: with {images} images and {texts} texts 'answer' must give each image "
                f"its own text, e.g. {list(range(texts))}"
            )
        return tuple(answer)
    if min(images, texts) != 1 or max(images, texts) < 2:
        raise DataError(
            f"{where}: {images} images and {texts} texts; an item has 1 image and several texts, "
            f"several images and 1 text, or as many of both"
        )
    if type(answer) is not int or not 0 <= answer < max(images, texts):
        raise DataError(f"{where}: 'answer' must be an index from 0 to {max(images, texts) - 1}")
    return (answer,)
