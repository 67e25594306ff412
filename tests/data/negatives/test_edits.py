"""Articles, capitals and plain texts."""

import pytest

from clipkit.data.negatives.edits import apply, exchange, plain, put, with_article
from clipkit.data.negatives.reading import Caption


@pytest.mark.parametrize(
    ("word", "article"),
    [("apple", "an"), ("dog", "a"), ("hour", "an"), ("unicorn", "a"), ("umbrella", "an"),
     ("one-eyed cat", "a"), ("European", "a"), ("Owl", "an")],
)  # fmt: skip
def test_article(word, article):
    assert with_article(word) == article


@pytest.mark.parametrize(
    ("text", "word", "new", "expected"),
    [("a red dog", 1, "orange", "an orange dog"), ("An owl", 1, "dog", "A dog"),
     ("Red dog", 0, "blue", "Blue dog"), ("A RED DOG", 1, "orange", "AN ORANGE DOG"),
     ("the a, owl", 2, "dog", "the a, dog"), ("an  owl", 1, "dog", "a  dog")],
)  # fmt: skip
def test_put(text, word, new, expected):
    caption = Caption(text)
    assert apply(text, [put(caption, word, word, new)]) == expected


@pytest.mark.parametrize(
    ("text", "one", "two", "expected"),
    [("a red circle and an orange square", (1, 1), (5, 5), "an orange circle and a red square"),
     ("A dog chasing the boys.", (0, 1), (3, 4), "The boys chasing a dog."),
     ("NASA left of ESA", (0, 0), (3, 3), "ESA left of NASA"),
     ("An owl, a hen", (1, 1), (3, 3), "A hen, an owl")],
)  # fmt: skip
def test_exchange(text, one, two, expected):
    assert apply(text, exchange(Caption(text), one, two)) == expected


def test_plain_is_words_alone():
    assert plain(" A  Red-dog, (big)_cat! ") == "a red dog big cat" == plain("a red dog BIG cat")
