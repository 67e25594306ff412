"""What trades places, and that nothing does where it would say the same."""

import pytest

from clipkit.data.negatives import KINDS, CaptionEditor


def swapped(caption, *kinds):
    found = CaptionEditor(kinds or KINDS, ("swap",)).candidates(caption)
    return {negative.text: negative.kind for negative in found}


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a red circle and a blue square", {"a blue circle and a red square": "color"}),
        ("a red circle and an orange square", {"an orange circle and a red square": "color"}),
        ("A tall man and a short woman", {"A short man and a tall woman": "size"}),
        ("Wooden spoons and a metal whisk", {"Metal spoons and a wooden whisk": "attribute"}),
        ("two swans and six ducks", {"six swans and two ducks": "number"}),
        (
            "kiss woman man light skin tone dark skin tone",
            {"kiss woman man dark skin tone light skin tone": "attribute"},
        ),
        ("A dog chasing a boy.", {"A boy chasing a dog.": "relation"}),
        ("the dog is chasing the cat", {"the cat is chasing the dog": "relation"}),
        ("A nurse gives a pill to a boy", {"A boy gives a pill to a nurse": "relation"}),
        ("a goat on top of a tractor", {"a tractor on top of a goat": "spatial"}),
        ("owl above bagel", {"bagel above owl": "spatial"}),
        ("a globe with rings left of an owl", {"an owl left of a globe with rings": "spatial"}),
        (
            "apples on the left and pears on the right",
            {"apples on the right and pears on the left": "spatial"},
        ),
        ("from left to right: a cat, a dog", {"from left to right: a dog, a cat": "order"}),
        ("a boy jumps, then a dog barks", {"a dog barks, then a boy jumps": "order"}),
    ],
)
def test_trades_places(caption, expected):
    assert swapped(caption) == expected


def test_a_relation_of_coloured_things():
    assert swapped("a red circle left of an orange square") == {
        "an orange circle left of a red square": "color",
        "an orange square left of a red circle": "spatial",
        "a red square left of an orange circle": "object",
    }


def test_three_things_in_a_row():
    assert set(swapped("owl left of bagel above fox")) == {
        "bagel left of owl above fox",
        "fox left of bagel above owl",
        "owl left of fox above bagel",
    }


@pytest.mark.parametrize(
    "caption",
    [
        "a cat and a dog",
        "a cat next to a dog",
        "a cat beside a dog",
        "a cat near a dog",
        "a cat with a dog",
        "a table between a cat and a dog",
        "a man talking to a woman",
        "a bride kissing a groom",
        "two boys hugging two girls",
        "a red ball and a blue ball",  # of one thing
        "two dogs and three dogs",
        "a red and white flag",
        "kiss man man light skin tone dark skin tone",
        "the girl chases the girls",  # number would not agree, and the same word
        "the dog chases two cats",
        "a dog chasing its owner",
        "a boat on a lake",  # scenery has no other place
        "a man in a red jacket",
        "a cat lying on a couch next to a cup",
        "a girl on the left and a girl on the right",
        "Fish above fish",
    ],
)
def test_nothing_where_it_would_say_the_same_or_nonsense(caption):
    assert swapped(caption) == {}
