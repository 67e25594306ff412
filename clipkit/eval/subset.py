"""Some images of an evaluation set, drawn at random: a source of images of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from clipkit.data.wds_folder import WdsFolder


@dataclass(frozen=True)
class Subset:
    """Images of a folder in an order of its own.

    Attributes:
        folder: The whole set.
        indices: Which of its images.
    """

    folder: WdsFolder
    indices: tuple[int, ...]

    @classmethod
    def draw(cls, folder: WdsFolder, count: int, seed: int) -> Subset:
        """`count` images in random order, without repeats; all where there are no more."""
        order = np.random.default_rng(seed).permutation(len(folder))
        return cls(folder, tuple(order[:count].tolist()))

    @property
    def place(self) -> str:
        """Where it lies."""
        return f"{self.folder.place}#{self._digest}"

    @property
    def identity(self) -> str:
        """Hash of the folder's bytes and of the choice."""
        return f"{self.folder.identity}#{self._digest}"

    @property
    def _digest(self) -> str:
        return hashlib.sha256(repr(self.indices).encode()).hexdigest()[:16]

    @property
    def keys(self) -> list[str]:
        """Key of every image, in order."""
        return [self.folder.keys[i] for i in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def images(self, start: int, stop: int) -> Iterator[Image.Image]:
        """Images start .. stop - 1, in order.

        Raises:
            DataError: An image is missing or unreadable.
        """
        for index in self.indices[start:stop]:
            yield from self.folder.images(index, index + 1)

    def labels(self) -> list[int]:
        """Class of every image.

        Raises:
            DataError: A label is missing or outside the class names.
        """
        labels = self.folder.labels()
        return [labels[i] for i in self.indices]
