"""HCL: InfoNCE at beta = tau_plus = 0, monotone in beta, its clamp, extreme scales."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from clipkit.losses.hcl import HCLLoss
from clipkit.losses.infonce import InfoNCELoss
from tests.losses.problems import answer_of, cast, features_of, make_problem, pair_of, worst
from tests.losses.reference import Problem, hcl


def loss_of(p: Problem, beta: float, tau_plus: float) -> Tensor:
    """HCL's."""
    loss = HCLLoss(beta=beta, tau_plus=tau_plus)
    return loss(features_of(p), pair_of(p))["contrastive"]


@pytest.mark.parametrize("columns", [False, True])
def test_beta_and_tau_zero_is_infonce(columns: bool) -> None:
    p = make_problem(columns=columns)
    found = answer_of(lambda q: loss_of(q, 0.0, 0.0), p)
    right = answer_of(lambda q: InfoNCELoss()(features_of(q), pair_of(q))["contrastive"], p)
    assert found.loss.item() == pytest.approx(right.loss.item(), rel=1e-13)
    assert worst(found, right) < 1e-12


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("tau_plus", [0.0, 0.1, 0.6])
def test_equals_the_reference(beta: float, tau_plus: float) -> None:
    p = make_problem(2.0)
    found = answer_of(lambda q: loss_of(q, beta, tau_plus), p)
    right = answer_of(lambda q: hcl(q, False, beta, tau_plus), p)
    assert found.loss.item() == pytest.approx(right.loss.item(), rel=1e-12)
    assert worst(found, right) < 1e-11


def test_one_row_by_hand() -> None:
    p = make_problem(2.0, size=3, columns=False)
    logits, total = (2.0 * p.image @ p.text.T).tolist(), 0.0
    for matrix in (logits, list(zip(*logits))):
        for i, row in enumerate(matrix):
            e = [math.exp(x) for j, x in enumerate(row) if j != i]
            weighted = sum(x * x for x in e) / (sum(e) / 2)
            p_i = math.exp(row[i])
            ng = max((weighted - 0.1 * 2 * p_i) / 0.9, 2 * math.exp(-2.0))
            total -= math.log(p_i / (p_i + ng))
    assert loss_of(p, 1.0, 0.1).item() == pytest.approx(total / 6, rel=1e-13)


@pytest.mark.parametrize("tau_plus", [0.0, 0.1])
def test_loss_grows_with_beta(tau_plus: float) -> None:
    losses = [loss_of(make_problem(), b, tau_plus).item() for b in (0.0, 0.3, 1.0, 3.0, 10.0)]
    assert losses == sorted(set(losses))


def test_correction_lowers_the_loss_of_good_pairs() -> None:
    p = make_problem()
    p = replace(p, text=p.image)
    assert loss_of(p, 1.0, 0.1) < loss_of(p, 1.0, 0.0)


def clamped() -> Problem:
    """Aligned pairs: with a large tau_plus the correction leaves nothing."""
    p = make_problem(5.0)
    return replace(p, text=p.image.clone())


def test_the_clamp_leaves_no_gradient_to_negatives() -> None:
    found = answer_of(lambda q: loss_of(q, 1.0, 0.9), clamped())
    assert found.grads["columns"].abs().sum() == 0
    # of the rest only the positives' is left: along the paired rows
    p, g = clamped(), found.grads["image"]
    along = (g * p.text).sum(1, keepdim=True) * p.text
    torch.testing.assert_close(g, along, rtol=0, atol=1e-14)
    assert g.norm(dim=1).min() > 0


def test_the_clamp_is_the_smallest_possible_sum() -> None:
    p = clamped()
    counts = (9 + int(p.mask.sum()), 9)
    wanted = sum(math.log1p(n * math.exp(-5.0) / math.exp(5.0)) for n in counts) / 2
    assert loss_of(p, 1.0, 0.9).item() == pytest.approx(wanted, rel=1e-12)


def test_beyond_the_clamp_negatives_have_gradients() -> None:
    found = answer_of(lambda q: loss_of(q, 1.0, 0.1), make_problem())
    assert found.grads["columns"].abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0, 1000.0])
@pytest.mark.parametrize("beta, tau_plus", [(0.0, 0.0), (1.0, 0.1), (20.0, 0.99)])
def test_extreme_scales_are_finite(
    dtype: torch.dtype, scale: float, beta: float, tau_plus: float
) -> None:
    for p in (make_problem(scale), replace(clamped(), scale=make_problem(scale).scale)):
        found = answer_of(lambda q: loss_of(q, beta, tau_plus), cast(p, dtype))
        assert all(torch.isfinite(t).all() for t in (found.loss, *found.grads.values()))
