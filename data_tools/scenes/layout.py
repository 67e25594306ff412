"""Where the things of a scene lie, and the picture of it. Lengths are shares of the side."""

from __future__ import annotations

import io
import random
from dataclasses import dataclass

from PIL import Image

from data_tools.scenes.wording import Claim

SIZES = {2: (0.36, 0.46), 3: (0.28, 0.36)}  # longer side of a thing, by how many there are
_CLEAR = 2.0  # the pair lies so many times further apart along its axis than across


@dataclass(frozen=True)
class Spot:
    """Centre and longer side of a thing; y points down."""

    x: float
    y: float
    size: float


def place(claim: Claim, rng: random.Random) -> tuple[Spot, ...]:
    """Draw spots, in order of mention, in which the claim clearly holds and no two overlap.

    The pair is clear of the diagonal; both of it lie beyond the third along the other axis.
    """
    count = len(claim.things)
    while True:
        sizes = [rng.uniform(*SIZES[count]) for _ in range(count)]
        spots = tuple(
            Spot(rng.uniform(s / 2, 1 - s / 2), rng.uniform(s / 2, 1 - s / 2), s) for s in sizes
        )
        if holds(claim, spots):
            return spots


def holds(claim: Claim, spots: tuple[Spot, ...]) -> bool:
    """Whether a claim is clearly true of these spots."""
    first, second = spots[:2]
    along, across = _offsets(first, second, claim.relation)
    if not (_beyond(first, second, claim.relation) and along >= _CLEAR * abs(across)):
        return False
    return claim.both is None or all(_beyond(spot, spots[2], claim.both) for spot in spots[:2])


def draw_scene(
    pictures: list[Image.Image], spots: tuple[Spot, ...], side: int, rng: random.Random
) -> bytes:
    """Paste the pictures on a light background; returns an RGB PNG.

    The background is redder to the right and greener to the bottom, so that it can be seen locally
    where in the picture a thing lies: convolutions and pooling are slow to find out by themselves.
    """
    scene = _background(side, rng)
    for picture, spot in zip(pictures, spots, strict=True):
        factor = spot.size * side / max(picture.size)
        width, height = (max(1, round(length * factor)) for length in picture.size)
        small = picture.resize((width, height), Image.Resampling.LANCZOS)
        corner = (round(spot.x * side - width / 2), round(spot.y * side - height / 2))
        scene.paste(small, corner, small)
    buffer = io.BytesIO()
    scene.save(buffer, format="PNG")
    return buffer.getvalue()


def _background(side: int, rng: random.Random) -> Image.Image:
    down = Image.linear_gradient("L").resize((side, side))
    right = down.transpose(Image.Transpose.TRANSPOSE)
    low, blue = rng.randint(100, 130), rng.randint(100, 250)
    red, green = (band.point(lambda value: low + value // 2) for band in (right, down))
    return Image.merge("RGB", (red, green, Image.new("L", (side, side), blue)))


def _offsets(spot: Spot, other: Spot, relation: str) -> tuple[float, float]:
    """How far `spot` lies from `other` in the relation's direction, and across it."""
    dx, dy = spot.x - other.x, spot.y - other.y
    return {
        "left of": (-dx, dy),
        "right of": (dx, dy),
        "above": (-dy, dx),
        "below": (dy, dx),
    }[relation]


def _beyond(spot: Spot, other: Spot, relation: str) -> bool:
    """Whether `spot` lies in the relation's direction, with no overlap along it."""
    return _offsets(spot, other, relation)[0] >= (spot.size + other.size) / 2
