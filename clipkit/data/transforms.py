"""Random resized crop and flip on uint8 tensors, from a generator the caller seeds per sample."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torchvision.transforms.v2 import functional as tv
from torchvision.transforms.v2.functional import InterpolationMode


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
        top, left, height, width = self._box(image.shape[1], image.shape[2], rng)
        flip = rng.random() < self.flip
        if (height, width) == self.size == tuple(image.shape[1:]):
            out = image
        else:
            out = tv.resized_crop(
                image,
                top,
                left,
                height,
                width,
                list(self.size),
                InterpolationMode.BICUBIC,
                antialias=True,
            )
        return out.flip(-1) if flip else out

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
