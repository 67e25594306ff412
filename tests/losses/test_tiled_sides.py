"""Exchanged sides and refined names: the kernel finds keys, masks and columns by name alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from clipkit.contracts import Features, Pair
from tests.losses.problems import LOSSES, answer_of, features_of, make_problem, wanted, worst
from tests.losses.reference import Problem

TRIPLET = Pair("negative_image", "negative", ("text",))


def check(kind: str, p: Problem, mask_duplicates: bool, pair: Pair, names: dict[str, str]) -> None:
    """The loss of `pair`, whose embeddings are those of `p` under other names, by its formula."""
    part, options, _ = LOSSES[kind]
    loss = part(**options, mask_duplicates=mask_duplicates)

    def value(leaves: Problem) -> torch.Tensor:
        found = features_of(leaves)
        renamed = {names[n]: x for n, x in found.embeddings.items()}
        keys = {names[n]: x for n, x in found.text_keys.items()}
        if pair.image == "text":  # the captions are those of the first side now
            keys = {"text": found.text_keys["text"]}
        masks = {names[n]: x for n, x in found.masks.items()}
        return loss(
            replace(found, embeddings=renamed, text_keys=keys, masks=masks, _gathered={}), pair
        )["contrastive"]

    found, right = answer_of(value, p), wanted(kind, p, mask_duplicates)
    assert found.loss.item() == pytest.approx(right.loss.item(), rel=1e-12)
    assert worst(found, right) < 1e-10


@pytest.mark.parametrize("mask_duplicates", [False, True])
@pytest.mark.parametrize("kind", LOSSES)
def test_captions_may_be_the_rows(kind: str, mask_duplicates: bool) -> None:
    p = make_problem()
    p = replace(p, column_captions=p.column_captions + 1000)  # images have no captions of their own
    names = {"image": "text", "text": "image", "negative": "negative_image"}
    check(kind, p, mask_duplicates, Pair("text", "image", ("negative_image",)), names)


@pytest.mark.parametrize("mask_duplicates", [False, True])
@pytest.mark.parametrize("kind", LOSSES)
def test_negatives_may_be_a_pair_of_their_own(kind: str, mask_duplicates: bool) -> None:
    names = {"image": "negative_image", "text": "negative", "negative": "text"}
    p = make_problem()
    assert p.columns is not None
    one = {"mask": p.mask[:, 1:], "column_captions": p.column_captions[:, 1:]}
    p = replace(p, columns=p.columns[:, 1:], **one)  # one caption a sample
    check(kind, p, mask_duplicates, TRIPLET, names)


@pytest.mark.parametrize("pair", [Pair("image@x", "text@y"), Pair("text@y", "image@x")])
def test_refined_captions_keep_their_keys(pair: Pair) -> None:
    p = make_problem(columns=False)
    plain = features_of(p)

    def loss(found: Features, which: Pair) -> float:
        part = LOSSES["infonce"][0](mask_duplicates=True)
        return float(part(found, which)["contrastive"])

    named = {"image@x": plain.local("image"), "text@y": plain.local("text")}
    assert loss(replace(plain, embeddings=named, _gathered={}), pair) == pytest.approx(
        loss(plain, Pair()), rel=1e-12
    )
    assert loss(replace(plain, text_keys={}), Pair()) > loss(plain, Pair())
