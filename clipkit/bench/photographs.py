"""Real photographs that need no download, as pixels and as JPEGs."""

from __future__ import annotations

import io
from importlib.util import find_spec

import numpy as np
from PIL import Image

_SKIMAGE = ("astronaut", "coffee", "chelsea", "rocket", "retina", "hubble_deep_field")
_LARGEST_ENLARGEMENT = 1.3


def photographs() -> dict[str, np.ndarray]:
    """Name -> (H, W, 3) uint8: two of scikit-learn, and those of scikit-image if it is there."""
    from sklearn.datasets import load_sample_image

    found = {name: load_sample_image(f"{name}.jpg") for name in ("china", "flower")}
    if find_spec("skimage"):
        from skimage import data

        found |= {name: getattr(data, name)() for name in _SKIMAGE}
    return found


def large_enough(picture: np.ndarray, side: int) -> bool:
    """Whether a picture can have this short side and is no blur then, which is cheap to code."""
    return side <= _LARGEST_ENLARGEMENT * min(picture.shape[:2])


def jpeg(picture: np.ndarray, side: int, quality: int = 90) -> bytes:
    """(H, W, 3) uint8 -> JPEG, 4:2:0, whose short side is `side` pixels."""
    image = Image.fromarray(picture)
    factor = side / min(image.size)
    size = (round(image.width * factor), round(image.height * factor))
    out = io.BytesIO()
    resized = image.resize(size, Image.Resampling.LANCZOS)
    resized.save(out, "JPEG", quality=quality, subsampling=2)
    return out.getvalue()
