"""Scenes: pairs, captions, negatives, and pictures that show what the caption says."""

import io
import itertools
import json
import random

import numpy as np
import pytest
from PIL import Image

from data_tools.demo_shapes import (
    COLORS,
    HELD_OUT,
    RELATIONS,
    SHAPES,
    SceneObject,
    combination_pairs,
    relation_caption,
    relation_negatives,
    relation_of,
    relations_test,
    relations_train,
    render_scene,
    shapes_caption,
    shapes_negatives,
    shapes_train,
)


def test_held_out_leaves_every_colour_and_shape_in_training() -> None:
    assert set(itertools.product(COLORS, SHAPES)) >= HELD_OUT
    seen = set(itertools.product(COLORS, SHAPES)) - HELD_OUT
    assert {color for color, _ in seen} == set(COLORS)
    assert {shape for _, shape in seen} == set(SHAPES)


@pytest.mark.parametrize("unseen", [False, True])
def test_pairs(unseen: bool) -> None:
    pairs = combination_pairs(unseen)
    assert len(pairs) > 200
    assert len({frozenset(pair) for pair in pairs}) == len(pairs)
    assert all(a[0] != b[0] and a[1] != b[1] for a, b in pairs)
    assert all(bool(HELD_OUT & set(pair)) == unseen for pair in pairs)


def test_captions_by_hand() -> None:
    first, second = ("red", "circle"), ("orange", "square")
    assert shapes_caption(first, second) == "a red circle and an orange square"
    expected = "an orange square left of a red circle"
    assert relation_caption(second, "left of", first) == expected


def test_shapes_negatives_by_hand() -> None:
    negatives = shapes_negatives(("red", "circle"), ("green", "square"), random.Random(0))
    assert list(negatives)[0] == "a green circle and a red square"
    assert 1 <= len(negatives) <= 5
    # The swap would be a blue circle, which is held out.
    negatives = shapes_negatives(("red", "circle"), ("blue", "square"), random.Random(0))
    assert "a blue circle and a red square" not in negatives


def test_each_shapes_negative_changes_one_word_or_swaps() -> None:
    rng = random.Random(0)
    for first, second in combination_pairs(unseen=False):
        words = shapes_caption(first, second).replace("an ", "a ").split()
        for negative, wrong in shapes_negatives(first, second, rng).items():
            others = negative.replace("an ", "a ").split()
            changed = [(w, o) for w, o in zip(words, others, strict=True) if w != o]
            is_swap = len(changed) == 2 and changed[0] == changed[1][::-1]
            assert len(changed) == 1 or is_swap
            replaced = "replace_shape" if changed[0][0] in SHAPES else "replace_color"
            assert wrong == ("swap_color" if is_swap else replaced)
            assert len(set(others)) == len(set(words))  # the two objects still differ in both


def test_relation_negatives_by_hand() -> None:
    assert relation_negatives(("red", "circle"), "above", ("green", "square")) == {
        "a red circle below a green square": "opposite_relation",
        "a green square above a red circle": "swap_roles",
        "a green circle above a red square": "swap_color",
    }
    assert len(relation_negatives(("red", "circle"), "above", ("blue", "square"))) == 2


@pytest.mark.parametrize(
    ("dx", "dy", "expected"),
    [(-9, 2, "left of"), (9, -2, "right of"), (1, -9, "above"), (0, 9, "below"), (9, 8, None)],
)
def test_relation_of(dx: float, dy: float, expected: str | None) -> None:
    assert relation_of(dx, dy) == expected


def test_relation_captions_agree_with_positions() -> None:
    scenes = [*relations_train(400, seed=0), *relations_test(100, seed=0)]
    counts = dict.fromkeys(RELATIONS, 0)
    for scene in scenes:
        first, second = json.loads(scene["json"])["objects"]
        relation = relation_of(first["x"] - second["x"], first["y"] - second["y"])
        assert relation is not None
        named = [(item["color"], item["shape"]) for item in (first, second)]
        assert scene["txt"].decode() == relation_caption(named[0], relation, named[1])
        counts[relation] += 1
    assert min(counts.values()) > len(scenes) / 8


def decode(png: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(png))
    assert (image.mode, image.size) == ("RGB", (32, 32))
    return np.asarray(image).astype(int)  # (32, 32, 3)


def test_picture_has_the_named_colours_at_the_named_places() -> None:
    for scene in shapes_train(60, seed=0):
        pixels = decode(scene["png"])
        for item in json.loads(scene["json"])["objects"]:
            # A ring is empty in its middle: look at the middle of its band.
            offset = 0.75 * item["radius"] if item["shape"] == "ring" else 0
            found = pixels[int(item["y"]), int(item["x"] + offset)]
            distances = {name: np.abs(found - rgb).sum() for name, rgb in COLORS.items()}
            assert min(distances, key=distances.__getitem__) == item["color"]


def test_shapes_look_different() -> None:
    areas = []
    for shape in SHAPES:
        item = SceneObject("white", shape, 16, 16, 6)
        areas.append(int((decode(render_scene((item,), random.Random(0))) > 150).sum()))
    assert len(set(areas)) == len(SHAPES)
    assert min(areas) > 3 * 40


def test_objects_do_not_overlap_and_stay_inside() -> None:
    for scene in shapes_train(300, seed=0):
        first, second = json.loads(scene["json"])["objects"]
        for item in (first, second):
            assert item["radius"] <= min(item["x"], item["y"])
            assert max(item["x"], item["y"]) <= 32 - item["radius"]
        distance = max(abs(first["x"] - second["x"]), abs(first["y"] - second["y"]))
        assert distance > first["radius"] + second["radius"]


def test_sizes_vary() -> None:
    radii = [json.loads(s["json"])["objects"][0]["radius"] for s in shapes_train(100, seed=0)]
    assert max(radii) - min(radii) > 1.5


def test_training_captions_come_about_equally_often() -> None:
    num_pairs = len(combination_pairs(unseen=False))
    counts: dict[frozenset[str], int] = {}
    for scene in shapes_train(2 * num_pairs, seed=0):
        objects = json.loads(scene["json"])["objects"]
        pair = frozenset(f"{item['color']} {item['shape']}" for item in objects)
        counts[pair] = counts.get(pair, 0) + 1
    assert set(counts.values()) == {2} and len(counts) == num_pairs
