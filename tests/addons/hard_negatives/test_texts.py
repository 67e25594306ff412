"""Ready-made negatives, made ones and padding."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest

from clipkit.addons.hard_negatives.texts import TextNegatives
from clipkit.data.bad_samples import BadSample
from clipkit.data.samples import Sample


class Numbered:
    """Makes "<caption> 0", "<caption> 1", ..., three at most."""

    def __init__(self, forbidden="nothing"):
        self.forbidden = forbidden

    def negatives(self, caption, count, rng, avoid=()):
        made = [f"{caption} {i}" for i in range(3) if f"{caption} {i}" not in avoid]
        return [SimpleNamespace(text=t) for t in made[:count]]

    def allows(self, text):
        return self.forbidden not in text


def drawn(count, meta, caption="a red circle", seed=0, captions=(), **how):
    sample = Sample({}, {"text": [caption]}, meta=meta, captions=list(captions))
    return TextNegatives(count, **how).add_to(sample, np.random.default_rng(seed))


def test_ready_made_ones_and_padding():
    sample = drawn(3, {"negatives": ["a blue circle", "A red  circle!", "", 7, "a blue, circle"]})
    assert sample.texts["negative"] == ["a blue circle", "a red circle", "a red circle"]
    assert sample.masks["negative"] == [True, False, False]


@pytest.mark.parametrize(
    "meta",
    [{}, {"negatives": "a string"}, {"negatives": []}, {"negatives": [None, " ", "...", "\ud800"]}],
)
def test_none_at_all_is_padding(meta):
    sample = drawn(2, meta)
    assert sample.texts["negative"] == ["a red circle"] * 2
    assert sample.masks["negative"] == [False, False]


def test_no_caption_of_the_image_is_a_negative():
    meta = {
        "negatives": ["A Dog", "a cat", "a cow", "an ox"],
        "captions": ["a dog", "two dogs"],
        "caption": "a cat.",
    }
    assert drawn(4, meta, captions=["a cow"]).masks["negative"] == [True, False, False, False]
    assert drawn(4, meta, captions=["a cow"]).texts["negative"][0] == "an ox"


def test_a_sample_of_them_is_drawn_without_return():
    meta = {"negatives": list("abcdefgh")}
    seen = set()
    for seed in range(40):
        found = drawn(3, meta, seed=seed).texts["negative"]
        assert len(set(found)) == 3
        seen |= set(found)
    assert seen == set("abcdefgh")
    assert drawn(3, meta, seed=1).texts == drawn(3, meta, seed=1).texts


def test_tags_choose():
    meta = {"negatives": ["a", 5, "b", "c"], "negative_tags": ["color", "size", "size"]}
    assert drawn(3, meta, tags=["size"]).texts["negative"][0] == "b"
    assert drawn(3, meta, tags=["size"]).masks["negative"] == [True, False, False]
    assert not any(drawn(3, {"negatives": ["a"]}, tags=["size"]).masks["negative"])


def test_forbidden_ones_are_left_out():
    meta = {"negatives": ["a red triangle", "a blue circle"]}
    sample = drawn(2, meta, editor=Numbered("red triangle"))
    assert sample.texts["negative"] == ["a blue circle", "a red circle"]


def test_made_ones():
    sample = drawn(2, {"negatives": ["ready"]}, source="rules", editor=Numbered())
    assert sample.texts["negative"] == ["a red circle 0", "a red circle 1"]


def test_ready_made_ones_first_and_made_ones_for_the_rest():
    meta = {"negatives": ["ready", "a red circle 0"]}
    sample = drawn(4, meta, source="both", editor=Numbered())
    assert set(sample.texts["negative"][:2]) == set(meta["negatives"])
    assert sample.texts["negative"][2:] == ["a red circle 1", "a red circle 2"]
    assert sample.masks["negative"] == [True] * 4


def test_the_first_or_no_sample():
    meta = {"negatives": ["a blue circle", "a dog"]}
    assert drawn(1, meta, first_or_none=True).texts["negative"] == ["a blue circle"]
    for bad in ({}, {"negatives": []}, {"negatives": ["a red circle", "a dog"]}):
        with pytest.raises(BadSample) as caught:
            drawn(1, bad, first_or_none=True)
        assert caught.value.cause == "no_negative"


def test_a_draw_changes_no_other():
    rng, same = np.random.default_rng(4), np.random.default_rng(4)
    sample = Sample({}, {"text": ["x"]}, meta={"negatives": ["a", "b", "c"]})
    first = TextNegatives(1).add_to(sample, rng).texts["negative"]
    assert rng.random() == same.random()
    again = Sample({}, {"text": ["x"]}, meta={"negatives": ["a", "b", "c"]})
    assert TextNegatives(1).add_to(again, rng).texts["negative"] == first, "and no other changes it"


def test_goes_to_workers():
    texts = pickle.loads(pickle.dumps(TextNegatives(2, editor=Numbered())))
    assert texts == texts and texts.count == 2
