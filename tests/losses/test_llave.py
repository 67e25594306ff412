"""LLaVE's loss: InfoNCE at alpha = 0, its gradient in logits, monotone in alpha, extreme scales."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from clipkit.losses.infonce import InfoNCELoss
from clipkit.losses.llave import LLaVELoss
from tests.losses.problems import answer_of, features_of, make_problem, pair_of
from tests.losses.reference import Problem, llave


def loss_of(p: Problem, alpha: float) -> Tensor:
    """LLaVE's."""
    return LLaVELoss(alpha=alpha)(features_of(p), pair_of(p))["contrastive"]


def test_alpha_zero_is_infonce() -> None:
    p = make_problem()
    found = answer_of(lambda q: loss_of(q, 0.0), p)
    right = answer_of(lambda q: InfoNCELoss()(features_of(q), pair_of(q))["contrastive"], p)
    assert torch.equal(found.loss, right.loss)
    assert all(torch.equal(found.grads[n], right.grads[n]) for n in right.grads)


@pytest.mark.parametrize("alpha", [-3.0, 0.5, 9.0, 50.0])
def test_equals_the_reference(alpha: float) -> None:
    p = make_problem()
    right = llave(p, False, alpha).item()
    assert loss_of(p, alpha).item() == pytest.approx(right, rel=1e-13)


def test_gradient_in_logits_is_softmax_of_boosted_logits_minus_target() -> None:
    p, alpha = make_problem(columns=False), 9.0
    # with the unit matrix as text, features are cosines
    p = replace(p, text=torch.eye(6, dtype=torch.float64), image=p.image[:6])
    p = replace(p, ids=p.ids[:6], captions=p.captions[:6])
    found = answer_of(lambda q: loss_of(q, alpha), p).grads["image"] / p.scale
    boost = (alpha * p.image).fill_diagonal_(0.0)
    boosted, eye = p.scale * p.image + boost, torch.eye(6)
    wanted = (boosted.softmax(1) + boosted.softmax(0) - 2 * eye) / 12
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-15)


def test_the_weight_is_held_constant_for_the_scale_too() -> None:
    p = make_problem(columns=False)
    found = answer_of(lambda q: loss_of(q, 9.0), p).grads["scale"]
    step = 1e-6
    above, below = (loss_of(replace(p, scale=p.scale + s), 9.0) for s in (step, -step))
    assert found.item() == pytest.approx(((above - below) / (2 * step)).item(), rel=1e-7)


def test_loss_grows_with_alpha_where_negatives_are_alike() -> None:
    p = make_problem()
    p = replace(p, image=p.image.abs(), text=p.text.abs(), columns=p.columns.abs())
    losses = [loss_of(p, a).item() for a in (0.0, 0.5, 2.0, 9.0, 50.0)]
    assert losses == sorted(set(losses))


def test_loss_falls_with_alpha_where_negatives_are_unlike() -> None:
    p = make_problem(columns=False)
    p = replace(p, image=p.image.abs(), text=-p.text.abs())
    assert loss_of(p, 9.0) < loss_of(p, 0.0)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0, 1000.0])
@pytest.mark.parametrize("alpha", [0.5, 50.0, 1000.0])
def test_extreme_scales_are_finite(scale: float, alpha: float) -> None:
    found = answer_of(lambda q: loss_of(q, alpha), make_problem(scale))
    assert all(torch.isfinite(t).all() for t in (found.loss, *found.grads.values()))
