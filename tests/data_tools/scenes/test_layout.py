"""Places and pixels: what the caption says is what the picture shows."""

import io
import itertools
import random

import numpy as np
import pytest
from PIL import Image

from data_tools.scenes.layout import SIZES, Spot, draw_scene, holds, place
from data_tools.scenes.wording import Claim
from tests.data_tools.scenes.test_wording import CLAIMS

COLORS = ((200, 0, 0), (0, 0, 200), (0, 90, 0))


def overlap(one: Spot, other: Spot) -> bool:
    reach = (one.size + other.size) / 2 - 1e-9
    return abs(one.x - other.x) < reach and abs(one.y - other.y) < reach


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: c.text)
def test_places_are_inside_apart_and_as_said(claim: Claim) -> None:
    for seed in range(30):
        spots = place(claim, random.Random(seed))
        assert holds(claim, spots)
        low, high = SIZES[len(claim.things)]
        for spot in spots:
            assert low <= spot.size <= high
            assert spot.size / 2 <= min(spot.x, spot.y)
            assert max(spot.x, spot.y) <= 1 - spot.size / 2
        assert not any(overlap(*pair) for pair in itertools.combinations(spots, 2))


def test_a_diagonal_is_no_relation() -> None:
    spots = (Spot(0.2, 0.2, 0.3), Spot(0.7, 0.6, 0.3))
    assert not holds(Claim(("ant", "bear"), "left of"), spots)
    assert holds(Claim(("ant", "bear"), "left of"), (spots[0], Spot(0.7, 0.4, 0.3)))


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: c.text)
def test_pixels_lie_as_said(claim: Claim) -> None:
    """Centres of mass are found by colour alone."""
    rng = random.Random(claim.text)
    pictures = [Image.new("RGBA", (30, 20), (*COLORS[i], 255)) for i in range(len(claim.things))]
    data = draw_scene(pictures, place(claim, rng), 64, rng)
    scene = Image.open(io.BytesIO(data))
    assert (scene.format, scene.mode, scene.size) == ("PNG", "RGB", (64, 64))
    pixels = np.asarray(scene)
    centres = []
    for color in COLORS[: len(claim.things)]:
        rows, columns = np.nonzero((pixels == color).all(axis=-1))
        centres.append((columns.mean(), rows.mean()))
    named = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}

    def lies(one: int, relation: str, other: int) -> bool:
        axis, sign = named[relation]
        return bool(sign * (centres[one][axis] - centres[other][axis]) > 10)

    assert lies(0, claim.relation, 1)
    assert claim.both is None or (lies(0, claim.both, 2) and lies(1, claim.both, 2))


def test_the_background_tells_where_one_is() -> None:
    """It shows through what is transparent, and no two of its spots look alike."""
    rng = random.Random(0)
    empty = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    data = draw_scene([empty, empty], (Spot(0.3, 0.5, 0.4), Spot(0.7, 0.5, 0.4)), 32, rng)
    pixels = np.asarray(Image.open(io.BytesIO(data))).astype(int)
    red, green, blue = np.moveaxis(pixels, -1, 0)
    assert (np.diff(red, axis=1) > 0).all()
    assert (np.diff(red, axis=0) == 0).all()
    assert (green == red.T).all()
    assert blue.min() == blue.max() >= 100
    assert red.min() >= 100
