"""Photographs of a wanted size, honest in what they cost to decode."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from clipkit.bench.photographs import jpeg, large_enough, photographs


def test_pictures() -> None:
    found = photographs()
    assert {"china", "flower"} <= found.keys()
    for picture in found.values():
        assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
        assert picture.std() > 20, "a photograph, not a flat image"


def test_without_scikit_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipkit.bench.photographs.find_spec", lambda name: None)
    assert photographs().keys() == {"china", "flower"}


@pytest.mark.parametrize("side", [64, 200])
def test_jpeg(side: int) -> None:
    picture = photographs()["flower"]
    image = Image.open(io.BytesIO(jpeg(picture, side)))
    assert image.format == "JPEG" and min(image.size) == side
    shape = picture.shape
    assert image.width / image.height == pytest.approx(shape[1] / shape[0], rel=0.02)
    off = np.asarray(image).mean((0, 1)) - picture.mean((0, 1))
    assert np.abs(off).max() < 2
    assert len(jpeg(picture, side, quality=50)) < len(jpeg(picture, side))


def test_no_picture_is_blown_up() -> None:
    picture = np.zeros((100, 400, 3), dtype=np.uint8)
    assert large_enough(picture, 130) and not large_enough(picture, 131)
