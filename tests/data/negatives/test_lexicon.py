"""Words of a group exclude each other, and no synonym is put in."""

import itertools
from collections import defaultdict

import pytest

from clipkit.data.negatives.lexicon import lexicon, plural


def entries():
    return [entry for listed in lexicon().phrases.values() for _, es in listed for entry in es]


@pytest.mark.parametrize(
    ("one", "many"),
    [("dog", "dogs"), ("box", "boxes"), ("bush", "bushes"), ("puppy", "puppies"), ("toy", "toys"),
     ("knife", "knives"), ("police officer", "police officers"), ("fireman", "firemans")],
)  # fmt: skip
def test_plural(one, many):
    assert plural(one, {"knife": "knives"}) == many


def test_irregular_plurals_reach_the_entries():
    phrases = {words for listed in lexicon().phrases.values() for words, _ in listed}
    for word in ("firemen", "mice", "geese", "tomatoes", "shelves", "women", "people", "deer"):
        assert (word,) in phrases, word


def test_options_of_a_group_name_different_things_in_the_same_form():
    for entry in entries():
        for form, options in entry.group.options.items():
            texts = [option.text for option in options]
            assert len(set(texts)) == len(texts), (entry.group.name, form)


@pytest.mark.parametrize(
    ("one", "two"),
    [("couch", "sofa"), ("puppy", "dog"), ("dog", "animal"), ("grey", "gray"), ("cyan", "blue"),
     ("large", "huge"), ("taxi", "car"), ("chef", "cook"), ("gold", "yellow"), ("steel", "metal"),
     ("sunset", "sunrise"), ("owl", "bird")],
)  # fmt: skip
def test_synonyms_kinds_and_look_alikes_are_never_put_in(one, two):
    by_word = defaultdict(list)
    for listed in lexicon().phrases.values():
        for words, found in listed:
            by_word[" ".join(words)] += found
    for source, target in ((one, two), (two, one)):
        for entry in by_word[source]:
            for option in entry.group.options.get(entry.form, []):
                put_in = option.concept not in entry.concepts
                assert not (put_in and option.text == target), (source, target)


def test_every_option_is_read_back_as_one_of_its_group():
    known = {words: found for listed in lexicon().phrases.values() for words, found in listed}
    for entry in entries():
        if entry.kind in ("spatial", "order", "fixed"):
            continue  # phrases of several words, not always terms themselves
        for option in itertools.chain(*entry.group.options.values()):
            found = known[tuple(option.text.lower().split())]
            assert any(option.concept in other.concepts for other in found), option
