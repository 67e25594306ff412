"""Small pictures of samples by their keys, encoded anew: nothing else of a file comes along."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from PIL import Image

from clipkit.data.eval_sets import types_of
from clipkit.data.image_files import ImageFiles, inside
from clipkit.data.selection_set import SelectionItem, SelectionSet, open_selection
from clipkit.data.wds_folder import KINDS, open_folder
from clipkit.errors import DataError

SIDE = 96  # pixels of the longer side
Read = Callable[[str], Image.Image]
T = TypeVar("T")


@dataclass(frozen=True)
class Item:
    """A selection item to look at.

    Attributes:
        pictures: Data URIs of its images.
        texts: Its candidates, or the one text.
        answer: Index of the right text of each image; empty where images are to be chosen.
    """

    pictures: list[str]
    texts: list[str]
    answer: list[int]


class Thumbnails:
    """JPEG data URIs of samples, and for each data set why there are none.

    Args:
        wanted: False gives no thumbnail of anything.
    """

    def __init__(self, wanted: bool = True) -> None:
        self.wanted = wanted
        self._readers: dict[tuple[str, str], Read | None] = {}
        self._made: dict[tuple[str, str, str], str | None] = {}
        self._items: dict[tuple[str, str], dict[str, tuple[SelectionSet, SelectionItem]]] = {}
        self._problems: dict[tuple[str, str], str] = {}

    def get(self, data: str, split: str, name: str, sure: bool = True) -> str | None:
        """Data URI of a sample by its key, or of a file by its path below the data set's folder.

        None where there is none; `problem` says why, unless the name was not `sure` to be one.
        """
        place = (data, split, name)
        if place not in self._made:
            self._made[place] = self._try(data, split, lambda read: thumbnail(read(name)), sure)
        return self._made[place]

    def item(self, data: str, split: str, name: str) -> Item | None:
        """A selection item by its id; None where there is none."""
        place = (data, split)
        if place not in self._items:
            self._items[place] = {}
            chosen = self._try(data, split, lambda _: open_selection(data, split), True)
            self._items[place] = {i.id: (chosen, i) for i in chosen.items} if chosen else {}
        found = self._items[place].get(name)
        if found is None:
            return None
        chosen, item = found

        def pictures(_: Read) -> list[str]:
            rows = [chosen.rows[image] for image in item.images]
            return [thumbnail(next(chosen.source.images(row, row + 1))) for row in rows]

        right = item.answer if item.shape[1] > 1 else ()
        made = self._try(data, split, pictures, True)
        return Item(made or [], list(item.texts), list(right))

    def problem(self, data: str, split: str) -> str | None:
        """The first thing that kept a thumbnail of this data set from being made."""
        return self._problems.get((data, split))

    def _try(self, data: str, split: str, make: Callable[[Read], T], sure: bool) -> T | None:
        place = (data, split)
        if not (self.wanted and data):
            return None
        try:
            if place not in self._readers:
                self._readers[place] = None  # not opened a second time when it fails
                self._readers[place] = _reader(data, split)
            read = self._readers[place]
            return make(read) if read else None
        except NoSuchSample as error:
            if sure:
                self._problems.setdefault(place, str(error))
        except (DataError, OSError) as error:
            self._problems.setdefault(place, str(error))
        return None


class NoSuchSample(DataError):
    """The data set does not hold what a result names; it was changed since, or it is no name."""


def _reader(data: str, split: str) -> Read:
    """A function from a sample's key, or a file's path, to its picture."""
    root = Path(data)
    if not root.is_dir():
        raise DataError(f"{data} is not there any more")
    rows: dict[str, int] = {}
    if set(types_of(root, split)) & set(KINDS):
        folder = open_folder(root, split)
        rows = {key: row for row, key in enumerate(folder.keys)}

    def read(name: str) -> Image.Image:
        if name in rows:
            return next(folder.images(rows[name], rows[name] + 1))
        if not (inside(name) and (root / name).is_file()):
            raise NoSuchSample(f"{data}: holds no sample '{name[:80]}' any more")
        return next(ImageFiles(root, [name]).images(0, 1))

    return read


def thumbnail(image: Image.Image, side: int = SIDE) -> str:
    """A picture of at most side x side pixels as a JPEG data URI, without metadata."""
    small = image.convert("RGB")
    small.thumbnail((side, side))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
