"""Captions and their negatives: a reader that knows only the text and the true places agrees."""

import itertools
import random
import re

import pytest

from data_tools.scenes.layout import holds, place
from data_tools.scenes.wording import ACROSS, OPPOSITE, RELATIONS, THREE, TWO, Claim, wrong_captions

KINDS = ["ant", "bear", "cat", "dog", "eel"]
CLAIMS = [
    *(Claim(("ant", "bear"), relation) for relation in RELATIONS),
    *(Claim(("ant", "bear", "cat"), r, both) for r in RELATIONS for both in ACROSS[r]),
]
FORM = re.compile(
    rf"the (\w+) ({'|'.join(RELATIONS)}) the (\w+)(?:, both ({'|'.join(RELATIONS)}) the (\w+))?"
)


def parse(text: str) -> Claim:
    """Read a caption back."""
    found = FORM.fullmatch(text)
    assert found, text
    first, relation, second, both, third = found.groups()
    return Claim(tuple(t for t in (first, second, third) if t), relation, both)


def meaning(claim: Claim) -> frozenset[tuple[str, str, str]]:
    """All that a claim says, as (thing, relation, other): equal however it is put."""
    first, second = claim.things[:2]
    said = {(first, claim.relation, second)}
    if claim.both:
        said |= {(thing, claim.both, claim.things[2]) for thing in (first, second)}
    return frozenset(said | {(b, OPPOSITE[r], a) for a, r, b in said})


def test_captions() -> None:
    assert Claim(("cat", "dog"), "left of").text == "the cat left of the dog"
    three = Claim(("cat", "dog", "eel"), "left of", "above")
    assert three.text == "the cat left of the dog, both above the eel"
    assert all(parse(claim.text) == claim for claim in CLAIMS)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: c.text)
def test_negatives_contradict_the_caption(claim: Claim) -> None:
    for seed in range(20):
        wrong = wrong_captions(claim, KINDS, random.Random(seed))
        assert [item.tag for item in wrong] == list(TWO if claim.both is None else THREE)
        axes = {frozenset((claim.relation, OPPOSITE[claim.relation]))}
        for item in wrong:
            other = parse(item.text)
            said = meaning(claim) | meaning(other)
            if item.tag in ("replace_thing", "replace_in_three"):
                assert len(set(claim.things) - set(other.things)) == 1
                assert len(set(other.things)) == len(claim.things)
            elif item.tag.startswith("other_axis"):
                assert other.things == claim.things
                assert other.relation not in next(iter(axes))
            else:  # the same things, and two that cannot both hold
                assert set(other.things) == set(claim.things)
                spots = (place(claim, random.Random(seed)), place(claim, random.Random(seed + 1)))
                for spot in spots:
                    where = dict(zip(claim.things, spot, strict=True))
                    assert not holds(other, tuple(where[thing] for thing in other.things))
            assert said != meaning(claim)


def test_opposite_and_swap_of_two_mean_the_same() -> None:
    wrong = {w.tag: parse(w.text) for w in wrong_captions(CLAIMS[0], KINDS, random.Random(0))}
    assert meaning(wrong["swap_things"]) == meaning(wrong["opposite_relation"])


def test_draws_reach_every_choice() -> None:
    claim = Claim(("ant", "bear", "cat"), "left of", "above")
    draws = [wrong_captions(claim, KINDS, random.Random(seed)) for seed in range(60)]
    choices = {tag: {w.text for draw in draws for w in draw if w.tag == tag} for tag in THREE}
    counts = {tag: len(texts) for tag, texts in choices.items()}
    assert counts == {
        "swap_pair": 1,
        "opposite_pair": 1,
        "opposite_both": 1,
        "other_axis_of_three": 4,
        "swap_in_three": 2,
        "rotate_three": 2,
        "replace_in_three": 3 * 2,
    }
    assert all(a.isdisjoint(b) for a, b in itertools.combinations(choices.values(), 2))
