"""Random resized crop and flip on uint8 tensors, from a generator the caller seeds per sample.

The crop is drawn from the image's size alone, before or after decoding, and may be applied to a
smaller decode of the same image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor
from torch.nn.functional import interpolate


class Crop(NamedTuple):
    """A box in pixels of the full image, and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    flip: bool


@dataclass(frozen=True)
class TrainTransform:
    """Crop a random area, resize it (bicubic, antialiased), perhaps flip.

    Attributes:
        size: (H, W) of the result.
        scale: Range of the crop's share of the image area.
        ratio: Range of the crop's aspect ratio.
        flip: Chance of a horizontal flip.
    """

    size: tuple[int, int]
    scale: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] = (0.75, 4 / 3)
    flip: float = 0.0

    def __call__(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        """(3, H, W) uint8 -> (3, *size) uint8."""
        return self.apply(image, self.draw(image.shape[1], image.shape[2], rng))

    def draw(self, height: int, width: int, rng: np.random.Generator) -> Crop:
        """A crop of an image of this size."""
        return Crop(*self._box(height, width, rng), rng.random() < self.flip)

    def enough(self, crop: Crop, height: int, width: int) -> tuple[int, int]:
        """Least (H, W) of a decode of a (height, width) image whose crop, its edges rounded to
        pixels, is no smaller than `size`; the full size where the crop is smaller already."""
        return (
            min(height, -(-height * (self.size[0] + 1) // crop.height)),
            min(width, -(-width * (self.size[1] + 1) // crop.width)),
        )

    def apply(self, image: Tensor, crop: Crop, full: tuple[int, int] | None = None) -> Tensor:
        """Cut, resize and flip.

        Args:
            image: (3, H, W) uint8, best in HWC memory.
            crop: In pixels of the full image.
            full: (H, W) of the full image where `image` is a smaller decode of it.

        Returns:
            (3, *size) uint8 in HWC memory.
        """
        height, width = image.shape[1:]
        if full is not None and full != (height, width):
            crop = _on_decode(crop, height, width, full)
        if (crop.height, crop.width) == self.size == (height, width):
            out = image
        else:
            rows = slice(crop.top, crop.top + crop.height)
            columns = slice(crop.left, crop.left + crop.width)
            # the batch dimension in front of HWC: with its stride the largest, the memory is known
            # as HWC and uint8 is resized without changing its layout
            box = image.permute(1, 2, 0)[None, rows, columns].permute(0, 3, 1, 2)
            out = interpolate(box, self.size, mode="bicubic", antialias=True)[0]
        return out.flip(-1) if crop.flip else out

    def _box(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Top, left, height, width; torchvision's RandomResizedCrop with our generator."""
        for _ in range(10):
            area = height * width * rng.uniform(*self.scale)
            aspect = math.exp(rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                return (
                    int(rng.integers(0, height - h + 1)),
                    int(rng.integers(0, width - w + 1)),
                    h,
                    w,
                )
        aspect = min(max(width / height, self.ratio[0]), self.ratio[1])
        w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
        return (height - h) // 2, (width - w) // 2, max(h, 1), max(w, 1)


def _on_decode(crop: Crop, height: int, width: int, full: tuple[int, int]) -> Crop:
    """The crop of a full image on a (height, width) decode, each edge at the nearest pixel."""
    rows, columns = height / full[0], width / full[1]
    top, left = min(round(crop.top * rows), height - 1), min(round(crop.left * columns), width - 1)
    bottom = max(round((crop.top + crop.height) * rows), top + 1)
    right = max(round((crop.left + crop.width) * columns), left + 1)
    return Crop(top, left, bottom - top, right - left, crop.flip)
