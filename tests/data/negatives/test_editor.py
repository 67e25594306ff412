"""What is drawn: different, allowed, reproducible."""

import pickle

import numpy as np
import pytest

from clipkit.data.negatives import KINDS, CaptionEditor
from clipkit.data.negatives.edits import plain
from clipkit.errors import ConfigError
from data_tools.demo_shapes import HELD_OUT, combination_pairs, relation_caption, shapes_caption
from tests.data.negatives.sample_for_judging import read_captions, sample_for_judging, share_without

SHAPES = "a red circle and a blue square"


def test_every_negative_of_the_captions_is_different_and_says_something():
    editor = CaptionEditor()
    for caption in (line["caption"] for line in read_captions()[::3]):
        found = editor.candidates(caption)
        texts = [plain(negative.text) for negative in found]
        assert len(set(texts)) == len(texts) and plain(caption) not in texts and "" not in texts
        assert all(n.kind in KINDS and n.style in ("replace", "swap") for n in found)
        assert all(n.text.strip() and "  " not in n.text for n in found)


def test_drawn_ones_are_candidates_and_a_function_of_the_generator():
    editor, copy = CaptionEditor(), pickle.loads(pickle.dumps(CaptionEditor()))
    for caption in (line["caption"] for line in read_captions()[::20]):
        known = set(editor.candidates(caption))
        drawn = editor.negatives(caption, 5, np.random.default_rng(3))
        assert drawn == copy.negatives(caption, 5, np.random.default_rng(3))
        assert set(drawn) <= known and len(set(drawn)) == len(drawn) == min(5, len(known))
    seeds = [editor.negatives(SHAPES, 1, np.random.default_rng(seed))[0] for seed in range(20)]
    assert len(set(seeds)) > 8


def test_all_are_reached_and_no_more_than_asked_for():
    editor, rng = CaptionEditor(("color",)), np.random.default_rng(0)
    known = editor.candidates(SHAPES)
    assert set(editor.negatives(SHAPES, 999, rng)) == set(known)
    assert editor.negatives(SHAPES, 0, rng) == [] and editor.negatives("photo", 3, rng) == []


def test_each_kind_and_style_comes_before_a_second_of_one():
    drawn = CaptionEditor().negatives(SHAPES, 3, np.random.default_rng(1))
    sorts = {(negative.kind, negative.style) for negative in drawn}
    assert sorts == {("color", "swap"), ("color", "replace"), ("object", "replace")}


def test_avoided_in_spite_of_case_space_and_punctuation():
    editor = CaptionEditor(("color",), ("swap",))
    assert editor.negatives(SHAPES, 1, np.random.default_rng(0))
    avoid = ["A  blue circle and a red SQUARE!"]
    assert editor.negatives(SHAPES, 1, np.random.default_rng(0), avoid) == []


def test_kinds_and_styles():
    for kind in KINDS:
        for style in ("replace", "swap"):
            editor = CaptionEditor((kind,), (style,))
            for line in read_captions()[::25]:
                found = editor.candidates(line["caption"])
                assert {(n.kind, n.style) for n in found} <= {(kind, style)}
    for wrong in ({"kinds": ("colour",)}, {"styles": ("add",)}, {"kinds": ()}):
        with pytest.raises(ConfigError, match="choose some of"):
            CaptionEditor(**wrong)


def test_no_held_out_combination_is_ever_named():
    phrases = [" ".join(combination) for combination in sorted(HELD_OUT)]
    editor, free = CaptionEditor(forbid=phrases), CaptionEditor()
    dropped = 0
    for pair in combination_pairs(unseen=False)[::15]:
        for caption in (shapes_caption(*pair), relation_caption(pair[0], "left of", pair[1])):
            texts = [negative.text for negative in editor.candidates(caption)]
            assert texts and not any(phrase in text for text in texts for phrase in phrases)
            dropped += len(free.candidates(caption)) - len(texts)
    assert dropped > 0


def test_allows_by_words_not_letters():
    editor = CaptionEditor(forbid=["Red  triangle", "big ben", " "])
    assert not editor.allows("A RED-triangle!") and not editor.allows("big ben")
    assert (
        editor.allows("a red triangles") and editor.allows("bored triangle") and editor.allows("")
    )
    assert CaptionEditor().allows("red triangle")


def test_long_captions_are_edited_where_a_text_encoder_reads():
    caption = "word " * 60 + "a red dog"
    assert CaptionEditor().candidates(caption) == []
    start = CaptionEditor().negatives("a red dog " * 5000, 2, np.random.default_rng(0))
    assert len(start) == 2


def test_the_sample_for_judging():
    lines = sample_for_judging()
    assert len(lines) == 100 and lines == sample_for_judging()
    shares = share_without()
    assert shares["shapes"] == 0 and shares["everyday"] < 0.1 and shares["emoji"] < 0.3
