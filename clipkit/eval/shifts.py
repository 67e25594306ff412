"""Synthetic shifts of a data set, and the two augmented views of an image.

Every change is a function of (seed, image, index): the same on every machine and rank. Strengths
are relative to the image's size, so that resizing afterwards does not undo them.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from clipkit.eval.embed import View

_GREY = (127, 127, 127)
_NOISE_SIDE = 224

Change = Callable[[Image.Image, float, np.random.Generator], Image.Image]


def _blur(image: Image.Image, severity: float, _: np.random.Generator) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(0.05 * severity * min(image.size)))


def _noise(image: Image.Image, severity: float, rng: np.random.Generator) -> Image.Image:
    width, height = image.size
    grid = (min(height, _NOISE_SIDE), min(width, _NOISE_SIDE))
    rows = np.arange(height) * grid[0] // height
    columns = np.arange(width) * grid[1] // width
    noise = rng.normal(0, 130 * severity, (*grid, 3))[rows][:, columns]
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


def _contrast(image: Image.Image, severity: float, _: np.random.Generator) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(1 - 0.95 * severity)


def _darkness(image: Image.Image, severity: float, _: np.random.Generator) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(1 - 0.9 * severity)


def _rotation(image: Image.Image, severity: float, _: np.random.Generator) -> Image.Image:
    return image.rotate(180 * severity, Image.Resampling.BILINEAR, fillcolor=_GREY)


def _pixelation(image: Image.Image, severity: float, _: np.random.Generator) -> Image.Image:
    factor = 1 + 24 * severity
    width, height = (max(1, round(side / factor)) for side in image.size)
    small = image.resize((width, height), Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.NEAREST)


def _posterisation(image: Image.Image, severity: float, _: np.random.Generator) -> Image.Image:
    return ImageOps.posterize(image, 8 - round(7 * severity))


def _occlusion(image: Image.Image, severity: float, rng: np.random.Generator) -> Image.Image:
    width, height = (max(1, round(0.85 * severity * side)) for side in image.size)
    left = int(rng.integers(0, image.width - width + 1))
    top = int(rng.integers(0, image.height - height + 1))
    ImageDraw.Draw(image).rectangle((left, top, left + width - 1, top + height - 1), _GREY)
    return image


def _zoom(image: Image.Image, severity: float, _: np.random.Generator) -> Image.Image:
    inset = [0.45 * severity * side for side in image.size]
    box = (inset[0], inset[1], image.width - inset[0], image.height - inset[1])
    return image.resize(image.size, Image.Resampling.BILINEAR, box=box)


def _compression(image: Image.Image, severity: float, _: np.random.Generator) -> Image.Image:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=max(1, round(30 * (1 - severity))))
    return Image.open(data).convert("RGB")


CHANGES: dict[str, Change] = {
    "blur": _blur,
    "noise": _noise,
    "contrast": _contrast,
    "darkness": _darkness,
    "rotation": _rotation,
    "pixelation": _pixelation,
    "posterisation": _posterisation,
    "occlusion": _occlusion,
    "zoom": _zoom,
    "compression": _compression,
}


def make_shifts(count: int, seed: int) -> list[View]:
    """`count` shifts: kinds in turn, severities spread evenly over 0 .. 1, both in random order."""
    rng = np.random.default_rng(seed)
    kinds = rng.permutation(list(CHANGES)).tolist()
    severities = ((rng.permutation(count) + 0.5) / count).tolist()
    return [shift(kinds[k % len(kinds)], severity, seed) for k, severity in enumerate(severities)]


def shift(kind: str, severity: float, seed: int = 0) -> View:
    """A change of `CHANGES` at a severity from 0 (hardly any) to 1."""

    def change(image: Image.Image, index: int) -> Image.Image:
        rng = np.random.default_rng((seed, index))
        return CHANGES[kind](image.convert("RGB"), severity, rng)  # a copy, which may be drawn on

    return View(f"{kind}:{severity:.4f}:seed{seed}", change)


def augmented(which: int, seed: int, before: View | None = None) -> View:
    """One of an image's augmented views: a random crop, a flip, colours changed.

    Args:
        which: 0 or 1, the first or the second view.
        seed: Of the draws.
        before: A shift made first.
    """

    def change(image: Image.Image, index: int) -> Image.Image:
        image = before.change(image, index) if before else image.convert("RGB")
        return _augment(image, np.random.default_rng((seed, index, which + 1)))

    return View(f"{before.name if before else ''}|augmented{which}:seed{seed}", change)


def _augment(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    area, ratio = rng.uniform(0.3, 1.0), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    width = min(1.0, float(np.sqrt(area * ratio))) * image.width
    height = min(1.0, float(np.sqrt(area / ratio))) * image.height
    left, top = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
    box = (left, top, min(image.width, left + width), min(image.height, top + height))
    image = image.resize(image.size, Image.Resampling.BILINEAR, box=box)
    if rng.random() < 0.5:
        image = ImageOps.mirror(image)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(rng.uniform(0.6, 1.4))
    return ImageOps.grayscale(image).convert("RGB") if rng.random() < 0.1 else image
