"""Rendered scenes of two coloured shapes, with captions that need binding and hard negatives.

In a *shapes* scene the caption binds colour to shape ("a red circle and a blue square") and the
order of the two mentions says nothing about position: with a fixed spatial order a model could
tell a colour swap from "first colour = colour on the left", without binding.
In a *relations* scene the caption also states how the first object lies relative to the second
("a red circle left of a blue square").

Some combinations of colour and shape are held out (`HELD_OUT`): they occur in no training image,
no training caption and no negative of any split. Were they to occur in negatives only, training
would teach that they are always wrong.
"""

import io
import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TypeVar

from PIL import Image, ImageDraw

IMAGE_SIZE = 32
OVERSAMPLING = 4  # drawn at four times the size and averaged down: smooth edges
COLORS = {
    "red": (215, 35, 35),
    "green": (40, 150, 55),
    "blue": (45, 75, 225),
    "yellow": (240, 220, 50),
    "purple": (140, 50, 175),
    "orange": (240, 135, 25),
    "cyan": (60, 210, 220),
    "white": (240, 240, 240),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond")
Combination = tuple[str, str]  # (colour, shape)
T = TypeVar("T")
# One shape of each colour, so that most colour swaps of seen combinations are seen as well.
HELD_OUT: frozenset[Combination] = frozenset(
    {
        ("red", "triangle"),
        ("green", "ring"),
        ("blue", "circle"),
        ("yellow", "cross"),
        ("purple", "square"),
        ("orange", "diamond"),
        ("cyan", "circle"),
        ("white", "triangle"),
    }
)
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@dataclass(frozen=True)
class SceneObject:
    """One drawn shape. `x`, `y`: its centre in pixels from the top left; `radius`: in pixels."""

    color: str
    shape: str
    x: float
    y: float
    radius: float

    @property
    def combination(self) -> Combination:
        """The (colour, shape) pair that captions name and that may be held out."""
        return (self.color, self.shape)


def combination_pairs(unseen: bool) -> list[tuple[Combination, Combination]]:
    """List the unordered pairs of combinations a scene may show, in a fixed order.

    The colours of a pair differ, and so do its shapes.

    Args:
        unseen: True for the pairs with at least one held-out combination, False for the rest.
    """
    combinations = list(itertools.product(COLORS, SHAPES))
    pairs = itertools.combinations(combinations, 2)
    return [
        pair
        for pair in pairs
        if pair[0][0] != pair[1][0]
        and pair[0][1] != pair[1][1]
        and unseen == any(combination in HELD_OUT for combination in pair)
    ]


def shapes_caption(first: Combination, second: Combination) -> str:
    """Say what a scene shows, e.g. "a red circle and an orange square"."""
    return f"{_noun_phrase(first)} and {_noun_phrase(second)}"


def relation_caption(first: Combination, relation: str, second: Combination) -> str:
    """Say how the first object lies, e.g. "a red circle left of an orange square"."""
    return f"{_noun_phrase(first)} {relation} {_noun_phrase(second)}"


def shapes_negatives(first: Combination, second: Combination, rng: random.Random) -> dict[str, str]:
    """Write the captions that are nearly right: the colour swap first, then four replacements.

    Each replacement changes one word to a colour or shape that the scene does not show. Captions
    that would name a held-out combination are dropped, so there may be few or none.

    Returns:
        Caption -> what is wrong with it: "swap_color", "replace_shape" or "replace_color".
    """
    other_colors = [color for color in COLORS if color not in (first[0], second[0])]
    other_shapes = [shape for shape in SHAPES if shape not in (first[1], second[1])]
    candidates = [
        ("swap_color", (second[0], first[1]), (first[0], second[1])),
        ("replace_shape", (first[0], rng.choice(other_shapes)), second),
        ("replace_shape", first, (second[0], rng.choice(other_shapes))),
        ("replace_color", (rng.choice(other_colors), first[1]), second),
        ("replace_color", first, (rng.choice(other_colors), second[1])),
    ]
    return {
        shapes_caption(*pair): wrong
        for wrong, *pair in candidates
        if not HELD_OUT.intersection(pair)
    }


def relation_negatives(first: Combination, relation: str, second: Combination) -> dict[str, str]:
    """Write the wrong relations: the opposite word, the roles swapped, the colours swapped.

    Captions that would name a held-out combination are dropped, so there may be none.

    Returns:
        Caption -> what is wrong with it: "opposite_relation", "swap_roles" or "swap_color".
    """
    candidates = [
        ("opposite_relation", first, OPPOSITE[relation], second),
        ("swap_roles", second, relation, first),
        ("swap_color", (second[0], first[1]), relation, (first[0], second[1])),
    ]
    return {
        relation_caption(one, word, other): wrong
        for wrong, one, word, other in candidates
        if not HELD_OUT.intersection((one, other))
    }


def selection_items(key: str, scene: dict[str, bytes]) -> list[dict[str, object]]:
    """Ask for the caption against each of its negatives, one item of a selection set each.

    Args:
        key: Of the scene's sample, its image's name.
        scene: Members of the sample.
    """
    description = json.loads(scene["json"])
    return [
        {
            "id": f"{key}/{number}",
            "images": [key],
            "texts": [scene["txt"].decode(), negative],
            "answer": 0,
            "tags": [wrong],
        }
        for number, (negative, wrong) in enumerate(
            zip(description["negatives"], description["negative_tags"], strict=True)
        )
    ]


def shapes_train(num_scenes: int, seed: int) -> Iterator[dict[str, bytes]]:
    """Yield training scenes; every seen pair occurs about equally often, in random order."""
    rng = random.Random(f"shapes train {seed}")
    for pair in _balanced(combination_pairs(unseen=False), num_scenes, rng):
        yield _shapes_sample(pair, rng)


def shapes_test(num_scenes: int, seed: int, unseen: bool) -> Iterator[dict[str, bytes]]:
    """Yield scenes whose captions are all distinct, also when word order is disregarded.

    Args:
        num_scenes: At most the number of pairs there are.
        seed: Draws pairs, order of mention, sizes and positions.
        unseen: Every scene shows at least one held-out combination (True) or none (False).
    """
    rng = random.Random(f"shapes {'unseen' if unseen else 'test'} {seed}")
    for pair in rng.sample(combination_pairs(unseen), num_scenes):
        yield _shapes_sample(pair, rng)


def relations_train(num_scenes: int, seed: int) -> Iterator[dict[str, bytes]]:
    """Yield training scenes; every (seen pair, relation) occurs about equally often."""
    rng = random.Random(f"relations train {seed}")
    for state in _balanced(_relation_states(), num_scenes, rng):
        yield _relation_sample(*state, rng)


def relations_test(num_scenes: int, seed: int) -> Iterator[dict[str, bytes]]:
    """Yield scenes of seen combinations; no two of their captions mean the same."""
    rng = random.Random(f"relations test {seed}")
    for state in rng.sample(_relation_states(), num_scenes):
        yield _relation_sample(*state, rng)


def render_scene(objects: tuple[SceneObject, ...], rng: random.Random) -> bytes:
    """Draw the objects on a dark background of random shade; returns a 32x32 RGB PNG."""
    shade = rng.randint(15, 75)
    background = tuple(shade + rng.randint(-10, 10) for _ in range(3))
    side = IMAGE_SIZE * OVERSAMPLING
    image = Image.new("RGB", (side, side), background)
    draw = ImageDraw.Draw(image)
    for item in objects:
        color = tuple(min(255, max(0, c + rng.randint(-12, 12))) for c in COLORS[item.color])
        _draw_shape(draw, item, color, background)
    buffer = io.BytesIO()
    image.reduce(OVERSAMPLING).save(buffer, format="PNG")
    return buffer.getvalue()


def _draw_shape(
    draw: ImageDraw.ImageDraw,
    item: SceneObject,
    color: tuple[int, ...],
    background: tuple[int, ...],
) -> None:
    """Fill one shape; all shapes of one radius fit in the same square box."""
    x, y, r = (OVERSAMPLING * value for value in (item.x, item.y, item.radius))
    box = (x - r, y - r, x + r, y + r)
    if item.shape == "circle":
        draw.ellipse(box, fill=color)
    elif item.shape == "square":
        draw.rectangle(box, fill=color)
    elif item.shape == "triangle":
        draw.polygon([(x - r, y + r), (x + r, y + r), (x, y - r)], fill=color)
    elif item.shape == "diamond":
        draw.polygon([(x - r, y), (x, y - r), (x + r, y), (x, y + r)], fill=color)
    elif item.shape == "cross":
        arm = 0.32 * r
        draw.rectangle((x - arm, y - r, x + arm, y + r), fill=color)
        draw.rectangle((x - r, y - arm, x + r, y + arm), fill=color)
    else:
        assert item.shape == "ring", item.shape
        hole = 0.5 * r
        draw.ellipse(box, fill=color)
        draw.ellipse((x - hole, y - hole, x + hole, y + hole), fill=background)


def _place(
    pair: tuple[Combination, Combination], relation: str | None, rng: random.Random
) -> tuple[SceneObject, SceneObject]:
    """Draw sizes and positions until the boxes are apart and the relation (if any) holds."""
    while True:
        spots = []
        for _ in pair:
            radius = round(rng.uniform(4.5, 6.5), 2)
            low, high = radius + 0.5, IMAGE_SIZE - radius - 0.5
            spots.append(
                (round(rng.uniform(low, high), 2), round(rng.uniform(low, high), 2), radius)
            )
        (x1, y1, r1), (x2, y2, r2) = spots
        apart = max(abs(x1 - x2), abs(y1 - y2)) >= r1 + r2 + 1
        if apart and (relation is None or relation_of(x1 - x2, y1 - y2) == relation):
            first, second = (SceneObject(*c, *s) for c, s in zip(pair, spots, strict=True))
            return first, second


def relation_of(dx: float, dy: float) -> str | None:
    """Name where an object lies that is offset by (dx, dy) from another one; y points down.

    Returns:
        One of RELATIONS, or None when the offset is too diagonal for one word to be right.
    """
    if abs(dx) >= 2 * abs(dy):
        return "left of" if dx < 0 else "right of"
    if abs(dy) >= 2 * abs(dx):
        return "above" if dy < 0 else "below"
    return None


def _shapes_sample(pair: tuple[Combination, Combination], rng: random.Random) -> dict[str, bytes]:
    first, second = pair if rng.random() < 0.5 else pair[::-1]
    return _sample(
        _place((first, second), None, rng),
        shapes_caption(first, second),
        shapes_negatives(first, second, rng),
        rng,
    )


def _relation_sample(
    pair: tuple[Combination, Combination], relation: str, rng: random.Random
) -> dict[str, bytes]:
    """Make a scene; with an even chance it is told from the second object's point of view."""
    first, second = pair
    if rng.random() < 0.5:
        first, relation, second = second, OPPOSITE[relation], first
    return _sample(
        _place((first, second), relation, rng),
        relation_caption(first, relation, second),
        relation_negatives(first, relation, second),
        rng,
    )


def _sample(
    objects: tuple[SceneObject, ...], caption: str, negatives: dict[str, str], rng: random.Random
) -> dict[str, bytes]:
    """Pack one scene as the members of a tar: suffix -> bytes. Objects in order of mention."""
    description = {
        "objects": [asdict(item) for item in objects],
        "negatives": list(negatives),
        "negative_tags": list(negatives.values()),
    }
    return {
        "png": render_scene(objects, rng),
        "txt": caption.encode(),
        "json": json.dumps(description).encode(),
    }


def _relation_states() -> list[tuple[tuple[Combination, Combination], str]]:
    """List what a relations scene may show: a seen pair and how its first object lies."""
    return list(itertools.product(combination_pairs(unseen=False), RELATIONS))


def _balanced(items: list[T], count: int, rng: random.Random) -> Iterator[T]:
    """Yield `count` items: pass after pass over all of them, each pass in a new random order."""
    while count > 0:
        batch = rng.sample(items, min(count, len(items)))
        count -= len(batch)
        yield from batch


def _noun_phrase(combination: Combination) -> str:
    color, shape = combination
    return f"{'an' if color[0] in 'aeiou' else 'a'} {color} {shape}"
