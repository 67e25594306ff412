"""Images that lie in a folder as files, whole or cropped to a box, in the order of their names."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

from PIL import Image

from clipkit.data.bad_samples import BadSample
from clipkit.data.content_hash import files_hash
from clipkit.data.decode import check_shape, open_image
from clipkit.errors import DataError

_MAX_BYTES = 50_000_000


class Crop(NamedTuple):
    """A part of an image file.

    Attributes:
        file: Its path below the root.
        box: (x, y, width, height) in pixels from the top left.
    """

    file: str
    box: tuple[float, float, float, float]


def inside(name: str) -> bool:
    """Whether a name is a path that stays below the folder it is read from, by its text alone.

    A link that the owner of the folder made may lead out of it; a name may not.
    """
    windows = PureWindowsPath(name)  # knows backslashes, drives and POSIX roots
    steps = windows.parts
    return bool(steps) and not windows.anchor and ".." not in steps and "\0" not in name


class ImageFiles:
    """Image files below a folder, unique and sorted by name: an image source for the embedder.

    Args:
        root: The folder.
        names: Paths below it with "/", or keys of `boxes`; any order, repeats allowed.
        boxes: Name -> the crop it stands for; a name that is not in it is a file.

    Attributes:
        names: Unique names, sorted; row i of the features is names[i].

    Raises:
        DataError: A name leads out of the folder, or its file is missing.
    """

    def __init__(
        self, root: Path, names: Sequence[str], boxes: Mapping[str, Crop] | None = None
    ) -> None:
        self.root = Path(root)
        self.names = sorted(set(names))
        boxes = boxes or {}
        self._crops = [boxes.get(name) for name in self.names]
        self._files = [c.file if c else n for c, n in zip(self._crops, self.names)]
        for file in self._files:
            if not inside(file):
                raise DataError(
                    f"{self.root}: image '{file[:200]}' leads out of the folder; name it by a path "
                    f"below the folder"
                )
        missing = [f for f in dict.fromkeys(self._files) if not os.path.isfile(self._path(f))]
        if missing:
            raise DataError(
                f"{self.root}: {len(missing)} of {len(set(self._files))} images are not there, "
                f"first '{missing[0][:200]}'; put them there or name the folder that holds them"
            )

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.names)}

    def index(self, name: str) -> int:
        """Row of an image.

        Raises:
            KeyError: It is not one of `names`.
        """
        return self._rows[name]

    @cached_property
    def place(self) -> str:
        """Where it lies: the folder and which images of it."""
        chosen = json.dumps([self.names, self._crops])
        return f"{self.root.absolute()}:{hashlib.sha256(chosen.encode()).hexdigest()[:16]}"

    @cached_property
    def identity(self) -> str:
        """Hash of the images' bytes and boxes, in order."""
        number = {file: i for i, file in enumerate(dict.fromkeys(self._files))}
        content = files_hash([self._path(file) for file in number])
        rows = [[number[f], c.box if c else None] for f, c in zip(self._files, self._crops)]
        return hashlib.sha256(f"{content}{json.dumps(rows)}".encode()).hexdigest()

    def images(self, start: int, stop: int, max_pixels: int = 50_000_000) -> Iterator[Image.Image]:
        """PIL images start .. stop - 1, RGB, in order.

        A box is cut at the image's edge.

        Raises:
            DataError: An image is unreadable or too large, or its box holds none of it.
        """
        for file, crop in zip(self._files[start:stop], self._crops[start:stop]):
            path = self._path(file)
            try:
                if path.stat().st_size > _MAX_BYTES:
                    raise DataError(f"{path}: is larger than {_MAX_BYTES // 1_000_000} MB")
                image = open_image(path.read_bytes(), max_pixels)
                image = check_shape(_cropped(image, crop, path) if crop else image)
            except BadSample as error:
                raise DataError(f"{path}: {error}") from None
            except OSError as error:
                raise DataError(f"{path}: cannot be read: {error.strerror}") from None
            yield image

    def _path(self, file: str) -> Path:
        return self.root / PurePosixPath(file)


def _cropped(image: Image.Image, crop: Crop, path: Path) -> Image.Image:
    x, y, width, height = crop.box
    left, top = max(0, round(x)), max(0, round(y))
    right, bottom = min(image.width, round(x + width)), min(image.height, round(y + height))
    if left >= right or top >= bottom:
        raise DataError(
            f"{path}: box {list(crop.box)} holds no pixel of the image "
            f"({image.width} x {image.height}); a box is [x, y, width, height]"
        )
    return image.crop((left, top, right, bottom))
