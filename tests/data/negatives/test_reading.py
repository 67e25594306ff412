"""Words, terms and noun phrases are found where they are, and only there."""

import pytest

from clipkit.data.negatives.reading import Caption


def terms(text, kind):
    caption = Caption(text)
    return {
        " ".join(caption.words[t.first : t.last + 1]) for t in caption.terms if t.entry.kind == kind
    }


def test_words_have_bounds():
    assert terms("covered in scattered bluebells, not red", "color") == {"red"}
    assert terms("a carpenter's catalogue", "object") == set()


def test_the_longest_phrase_is_the_term():
    assert terms("a red double decker bus", "object") == {"double decker bus"}
    assert terms("a black and white photo of a hot dog", "color") == set()
    assert terms("woman medium-dark skin tone", "attribute") == {"woman", "medium-dark skin tone"}


@pytest.mark.parametrize(
    "text",
    ["the Red House", "in Green Park", "#red #dog", 'it says "red dog"', "The Golden Gate Bridge",
     "DSC_red_dog"],
)  # fmt: skip
def test_names_tags_and_quotes_are_left_alone(text):
    assert not [t for t in Caption(text).terms if t.entry.kind in ("color", "object")]


def test_capitals_at_the_start_or_throughout_are_no_names():
    assert terms("Red dog. Blue cat", "color") == {"red", "blue"}
    assert terms("RED DOG ON A BED", "object") == {"dog", "bed"}


@pytest.mark.parametrize(
    ("text", "noun", "head"),
    [("a dog barks", "dog", False), ("a dog wearing a hat", "dog", True),
     ("a dog food bag", "dog", False), ("a big dog, asleep", "dog", True),
     ("a kitchen chair", "chair", False), ("the chair of a judge", "chair", True),
     ("a car parked there", "car", True), ("we can bus", "bus", False), ("in bed", "bed", False),
     ("my old bed", "bed", True), ("a tennis ball", "tennis ball", True),
     ("a golf game", "golf", True)],
)  # fmt: skip
def test_heads(text, noun, head):
    caption = Caption(text)
    found = [t for t in caption.terms if " ".join(caption.words[t.first : t.last + 1]) == noun]
    assert bool(found and caption.is_head(found[0])) == head


def test_noun_phrases():
    caption = Caption("on two very old wooden chairs behind the dog")
    found = caption.phrase_from(1)
    assert found is None  # "very" may belong elsewhere
    caption = Caption("on two old wooden chairs behind the dog")
    found = caption.phrase_from(1)
    assert found is not None and found[:2] == (1, 4) and found.determined
    assert caption.phrase_to(4) == found
    assert caption.phrase_to(7)[:2] == (6, 7)
    assert caption.phrase_from(0) is None and caption.phrase_to(3) is None


def test_denied():
    caption = Caption("a road with no big cars, trees without leaves and dogs")
    denied = {caption.words[i] for i in range(len(caption)) if caption.is_denied(i)}
    assert {"big", "cars", "leaves"} <= denied <= {"big", "cars", "leaves", "and"}


def test_sheep_are_one_or_many_by_the_word_before():
    forms = {}
    for text in ("a sheep", "two sheep", "several sheep", "sheep", "the sheep run"):
        forms[text] = [t.entry.form for t in Caption(text).terms if t.entry.noun]
    assert forms == {"a sheep": ["one"], "two sheep": ["many"], "several sheep": ["many"],
                     "sheep": ["one"], "the sheep run": []}  # fmt: skip


def test_what_lies_beyond_the_first_words_is_not_read():
    assert len(Caption("word " * 900)) == 50
