"""Ready-made negatives, made ones and padding."""

import numpy as np

from clipkit.addons.hard_negatives.texts import TextNegatives, plain
from clipkit.data.samples import Sample


def drawn(count, meta, caption="a red circle", editor=None, seed=0):
    texts = TextNegatives(count, ready_made=True, editor=editor)
    sample = Sample({}, {"text": [caption]}, meta=meta)
    return texts.add_to(sample, np.random.default_rng(seed))


def test_ready_made_ones_and_padding():
    sample = drawn(3, {"negatives": ["a blue circle", "A red  circle!", "", 7, "a blue, circle"]})
    assert sample.texts["negative"] == ["a blue circle", "a red circle", "a red circle"]
    assert sample.masks["negative"] == [True, False, False]


def test_none_at_all_is_padding():
    for meta in ({}, {"negatives": "a string"}, {"negatives": []}):
        sample = drawn(2, meta)
        assert sample.texts["negative"] == ["a red circle"] * 2
        assert sample.masks["negative"] == [False, False]


def test_a_draw_changes_no_other():
    rng, same = np.random.default_rng(4), np.random.default_rng(4)
    texts = TextNegatives(1, ready_made=True, editor=None)
    texts.add_to(Sample({}, {"text": ["x"]}, meta={"negatives": ["a", "b", "c"]}), rng)
    assert rng.random() == same.random()


def test_plain_words():
    assert plain(" A  Red-circle! ") == plain("a red circle") == "a red circle"
