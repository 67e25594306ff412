"""What a scene's caption says, and captions that are nearly right. Pure text.

Two things: "the cat left of the violin". Three: "the cat left of the violin, both above the drum".
Both orders of mention are equally likely, so word order says nothing about position.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import NamedTuple

RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
ACROSS = {  # the relations of the other axis
    relation: RELATIONS[2:] if relation in RELATIONS[:2] else RELATIONS[:2]
    for relation in RELATIONS
}
TWO = ("swap_things", "opposite_relation", "other_axis", "replace_thing")
THREE = (
    "swap_pair",
    "opposite_pair",
    "opposite_both",
    "other_axis_of_three",
    "swap_in_three",
    "rotate_three",
    "replace_in_three",
)


class Claim(NamedTuple):
    """How things lie.

    Attributes:
        things: Names in order of mention, two or three.
        relation: Of the first to the second.
        both: Of the first two to the third, on the other axis; None where there are two.
    """

    things: tuple[str, ...]
    relation: str
    both: str | None = None

    @property
    def text(self) -> str:
        """The caption."""
        pair = f"the {self.things[0]} {self.relation} the {self.things[1]}"
        return pair if self.both is None else f"{pair}, both {self.both} the {self.things[2]}"


@dataclass(frozen=True)
class Wrong:
    """A caption that does not hold, and what is wrong with it: one of TWO or THREE."""

    text: str
    tag: str


def wrong_captions(claim: Claim, kinds: list[str], rng: random.Random) -> list[Wrong]:
    """One caption of every type that is false in a scene where `claim` holds.

    Args:
        claim: What holds.
        kinds: Names that may replace a thing.
        rng: Draws where several would do.
    """
    relation, both = claim.relation, claim.both
    other = rng.choice([kind for kind in kinds if kind not in claim.things])
    if both is None:
        first, second = claim.things
        replaced = rng.choice([(other, second), (first, other)])
        claims = [
            Claim((second, first), relation),
            Claim((first, second), OPPOSITE[relation]),
            Claim((first, second), rng.choice(ACROSS[relation])),
            Claim(replaced, relation),
        ]
        return [Wrong(c.text, tag) for c, tag in zip(claims, TWO, strict=True)]
    first, second, third = things = claim.things
    place = rng.randrange(3)
    claims = [
        Claim((second, first, third), relation, both),
        Claim(things, OPPOSITE[relation], both),
        Claim(things, relation, OPPOSITE[both]),
        Claim(things, rng.choice(ACROSS[relation]), rng.choice(ACROSS[both])),
        Claim(rng.choice([(third, second, first), (first, third, second)]), relation, both),
        Claim(rng.choice([(second, third, first), (third, first, second)]), relation, both),
        Claim((*things[:place], other, *things[place + 1 :]), relation, both),
    ]
    return [Wrong(c.text, tag) for c, tag in zip(claims, THREE, strict=True)]
