"""Which embeddings meet once there are hard negatives.

Negatives are features of the towers alone, so they are columns only where the side they compete
with is: with "image" refined to "image@fused" the captions of Pair("image@fused", "text") still get
rivals, those of Pair("image", "text@fused") do not.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from clipkit.contracts import Pair

Form = Literal["texts", "both", "triplet"]


def harden(pairs: list[Pair], weight: float, form: Form) -> list[Pair]:
    """Pairs whose losses add up to (1 - weight) * L(pair) + weight * L(pair with negatives).

    Args:
        pairs: As other add-ons left them.
        weight: 0: `pairs` themselves. 1: no pair without negatives where there are some.
        form: texts: L is NegCLIP, 1/2 [cross entropy of an image over all captions and negative
            captions + that of a caption over all images].
            both: 1/2 [NegCLIP + NegCLIP with the sides exchanged, captions against all images and
                negative images]: both directions have negatives, in one half of the loss each. A
            half whose side is refined stays L(pair).
            triplet: NegCLIP(I, T, T') + NegCLIP(I', T', T), twice as large as the others.
    """
    if not weight:
        return pairs
    found = []
    for pair in pairs:
        hard = _with_negatives(pair, form)
        if not hard:
            found.append(pair)
            continue
        if weight < 1:
            found.append(replace(pair, weight=(1 - weight) * pair.weight))
        found += [replace(p, weight=weight * share * pair.weight) for p, share in hard]
    return found


def _with_negatives(pair: Pair, form: Form) -> list[tuple[Pair, float]]:
    """(pair, share) of one pair; empty where no negative fits."""
    captions = replace(pair, columns=(*pair.columns, "negative"))
    if form != "both":
        if form == "triplet" and (pair.image, pair.text) == ("image", "text"):
            return [(captions, 1.0), (Pair("negative_image", "negative", ("text",)), 1.0)]
        return [(captions, 1.0)] if pair.text == "text" else []
    if pair.text != "text" and pair.image != "image":
        return []
    images = Pair(pair.text, pair.image, ("negative_image",))
    halves = captions if pair.text == "text" else pair, images if pair.image == "image" else pair
    return [(half, 0.5) for half in halves]
