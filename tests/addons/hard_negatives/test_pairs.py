"""Which embeddings meet, and that the losses then are the published ones."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.addons.hard_negatives.pairs import Form, harden
from clipkit.config.parts import build_part, list_kinds
from clipkit.contracts import Features, Pair
from clipkit.losses.infonce import InfoNCELoss

KINDS = list_kinds("losses")
B, D, SCALE = 6, 8, 9.0
PLAIN = Pair()


def unit(*shape: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(shape, generator=g, dtype=torch.float64), dim=-1)


def features(num_texts: int = 3, keys: bool = False) -> Features:
    """Images, captions, negatives of both; an entry of five is masked."""
    g = torch.Generator().manual_seed(9)
    text_keys = {"text": torch.arange(B)[:, None], "negative": torch.arange(50, 50 + B)[:, None]}
    return Features(
        {
            "image": unit(B, 1, D, seed=1),
            "text": unit(B, 1, D, seed=2),
            "negative": unit(B, num_texts, D, seed=3),
            "negative_image": unit(B, 1, D, seed=4),
        },
        torch.tensor(SCALE, dtype=torch.float64),
        torch.tensor(-2.0, dtype=torch.float64),
        masks={"negative": torch.rand((B, num_texts), generator=g) < 0.8} if num_texts > 1 else {},
        ids=torch.arange(B),
        text_keys=text_keys if keys else {},
    )


def value(found: Features, pairs: list[Pair], kind: str = "infonce") -> Tensor:
    """What the step makes of the pairs."""
    loss = build_part("losses", {"kind": kind})
    return torch.stack([p.weight * loss(found, p)["contrastive"] for p in pairs]).sum()


def negclip(rows: Tensor, columns: Tensor, extra: Tensor, mask: Tensor | None = None) -> Tensor:
    """The published form, from whole matrices: (B, D), (B, D), (M, D)."""
    logits, more = SCALE * rows @ columns.T, SCALE * rows @ extra.T
    if mask is not None:
        more = more.masked_fill(~mask, -torch.inf)
    labels = torch.arange(len(rows))
    forward = F.cross_entropy(torch.cat([logits, more], dim=1), labels)
    return (forward + F.cross_entropy(logits.T, labels)) / 2


@pytest.mark.parametrize("form", ["texts", "both", "triplet"])
def test_weight_zero_changes_nothing(form: Form) -> None:
    pairs = [PLAIN, Pair("image@fused", "text", weight=0.5)]
    assert harden(pairs, 0.0, form) is pairs


def test_negclip() -> None:
    assert harden([PLAIN], 1.0, "texts") == [Pair(columns=("negative",))]
    f = features()
    wanted = negclip(
        f.local("image")[:, 0],
        f.local("text")[:, 0],
        f.local("negative").flatten(0, 1),
        f.masks["negative"].flatten(),
    )
    torch.testing.assert_close(value(f, harden([PLAIN], 1.0, "texts")), wanted)


@pytest.mark.parametrize("form", ["texts", "both", "triplet"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_weight_is_a_mean_of_losses(kind: str, form: Form) -> None:
    f = features(num_texts=1)
    plain, hard = value(f, [PLAIN], kind), value(f, harden([PLAIN], 1.0, form), kind)
    mixed = value(f, harden([PLAIN], 0.3, form), kind)
    torch.testing.assert_close(mixed, 0.7 * plain + 0.3 * hard)


def test_both_directions_have_negatives() -> None:
    pairs = harden([Pair(weight=3.0)], 1.0, "both")
    assert pairs == [
        Pair("image", "text", ("negative",), 1.5),
        Pair("text", "image", ("negative_image",), 1.5),
    ]
    f = features()
    image, text = f.local("image")[:, 0], f.local("text")[:, 0]
    by_image = negclip(
        image, text, f.local("negative").flatten(0, 1), f.masks["negative"].flatten()
    )
    by_text = negclip(text, image, f.local("negative_image")[:, 0])
    torch.testing.assert_close(value(f, pairs), 3.0 * (by_image + by_text) / 2)


def test_triplets_are_a_sum() -> None:
    pairs = harden([PLAIN], 1.0, "triplet")
    assert pairs == [
        Pair("image", "text", ("negative",)),
        Pair("negative_image", "negative", ("text",)),
    ]
    f = features(num_texts=1)
    i, t, n, v = (f.local(name)[:, 0] for name in ("image", "text", "negative", "negative_image"))
    torch.testing.assert_close(value(f, pairs), negclip(i, t, n) + negclip(v, n, t))


@pytest.mark.parametrize("kind", KINDS)
def test_triplets_may_be_exchanged(kind: str) -> None:
    f, pairs = features(num_texts=1, keys=True), harden([PLAIN], 1.0, "triplet")
    exchanged = {"image": "negative_image", "text": "negative"}
    exchanged |= {b: a for a, b in exchanged.items()}
    other = features(num_texts=1)
    other.embeddings = {exchanged[n]: x for n, x in f.embeddings.items()}
    torch.testing.assert_close(value(f, pairs, kind), value(other, pairs, kind))


def test_a_triplet_of_one_pair_costs_log_two() -> None:
    f = features(num_texts=1)
    f.embeddings["negative"] = f.local("text")
    f.embeddings["negative_image"] = f.local("image")
    for pair in harden([PLAIN], 1.0, "triplet"):
        image, text = f.local(pair.image)[:, 0], f.local(pair.text)[:, 0]
        logits = SCALE * image @ torch.cat([text, f.local(pair.columns[0])[:, 0]]).T
        rows = F.cross_entropy(logits, torch.arange(B), reduction="none")
        assert (rows >= math.log(2)).all()
        columns = F.cross_entropy(SCALE * text @ image.T, torch.arange(B))
        found = InfoNCELoss()(f, pair)["contrastive"]
        torch.testing.assert_close(found, (rows.mean() + columns) / 2)


@pytest.mark.parametrize("kind", KINDS)
def test_sides_without_columns_may_change_places(kind: str) -> None:
    f = features()
    torch.testing.assert_close(
        value(f, [Pair("text", "image")], kind), value(f, [PLAIN], kind), rtol=1e-12, atol=0
    )


class TestRefinedSides:
    """Negatives are not refined, so they compete with unrefined features only."""

    fused = [
        Pair("image@fused", "text@fused"),
        Pair("image@fused", "text", weight=0.5),
        Pair("image", "text@fused"),
    ]

    def test_captions(self) -> None:
        columns = [p.columns for p in harden(self.fused, 1.0, "texts")]
        assert columns == [(), ("negative",), ()]

    def test_images(self) -> None:
        assert harden(self.fused, 1.0, "both") == [
            self.fused[0],
            Pair("image@fused", "text", ("negative",), 0.25),
            Pair("image@fused", "text", weight=0.25),
            Pair("image", "text@fused", weight=0.5),
            Pair("text@fused", "image", ("negative_image",), 0.5),
        ]

    def test_triplets(self) -> None:
        assert len(harden(self.fused, 1.0, "triplet")) == 3

    def test_other_columns_stay(self) -> None:
        assert harden([Pair(columns=("bank",))], 1.0, "texts")[0].columns == ("bank", "negative")


@pytest.mark.parametrize("kind", ["infonce", "llave", "siglip", "dcl"])
def test_a_further_negative_can_only_cost(kind: str) -> None:
    f = features(num_texts=3)
    losses = []
    for count in range(4):
        f.masks["negative"] = torch.arange(3).expand(B, 3) < count
        losses.append(value(f, harden([PLAIN], 1.0, "texts"), kind).item())
    assert losses[0] == pytest.approx(value(f, [PLAIN], kind).item(), rel=1e-12)
    assert losses == sorted(losses) and losses[0] < losses[3]


@pytest.mark.parametrize("weight", [0.4, 1.0])
@pytest.mark.parametrize("form", ["texts", "both"])
def test_refined_pairs_may_come_before_or_after(form: Form, weight: float) -> None:
    found = features()
    for name in ("image", "text"):
        refined = unit(B, 1, D, seed=7 + len(name))
        found.embeddings[f"{name}@fused"] = refined
    first = harden(refine(PLAIN), weight, form)
    last = [r for p in harden([PLAIN], weight, form) for r in refine(p)]
    assert value(found, first).item() == pytest.approx(value(found, last).item(), rel=1e-12)


def refine(pair: Pair) -> list[Pair]:
    """The three pairs of retrieval fusion; columns stay with unrefined captions or images."""
    one, two = f"{pair.image}@fused", f"{pair.text}@fused"
    return [
        replace(pair, image=one, text=two, columns=()),
        replace(pair, image=one),
        replace(pair, text=two, columns=()),
    ]
