"""DCL: softplus of it is InfoNCE, weights that average 1, below zero, extreme scales."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from clipkit.losses.dcl import DCLLoss
from clipkit.losses.infonce import InfoNCELoss
from clipkit.losses.tiled import negatives, softplus
from tests.losses.problems import answer_of, features_of, make_problem, pair_of, worst
from tests.losses.reference import Problem, dcl, infonce


def loss_of(p: Problem, sigma: float | None = None) -> Tensor:
    """DCL's."""
    return DCLLoss(weight_sigma=sigma)(features_of(p), pair_of(p))["contrastive"]


@pytest.mark.parametrize("columns", [False, True])
def test_softplus_of_each_row_is_infonce(columns: bool) -> None:
    p = make_problem(columns=columns)
    found = negatives(features_of(p), pair_of(p))
    positive = p.scale * found.cosine
    rows = torch.stack([found.by_image[0] - positive, found.by_text[0] - positive])
    assert loss_of(p).item() == pytest.approx(rows.mean().item(), rel=1e-14)
    assert softplus(rows).mean().item() == pytest.approx(infonce(p, False).item(), rel=1e-13)


def test_below_infonce_and_below_zero() -> None:
    p = make_problem(columns=False)
    assert loss_of(p) < InfoNCELoss()(features_of(p), pair_of(p))["contrastive"]
    assert loss_of(replace(p, text=p.image)) < 0


@pytest.mark.parametrize("sigma", [None, 0.05, 0.5, 100.0])
@pytest.mark.parametrize("columns", [False, True])
def test_equals_the_reference(sigma: float | None, columns: bool) -> None:
    p = make_problem(columns=columns)
    found = answer_of(lambda q: loss_of(q, sigma), p)
    right = answer_of(lambda q: dcl(q, False, sigma), p)
    assert found.loss.item() == pytest.approx(right.loss.item(), rel=1e-13)
    assert worst(found, right) < 1e-11


@pytest.mark.parametrize("sigma", [0.01, 0.5, 10.0])
def test_weights_average_one(sigma: float) -> None:
    p = make_problem()
    weights = DCLLoss._weights((p.image * p.text).sum(1), features_of(p), sigma)
    assert weights.mean().item() == pytest.approx(1.0, abs=1e-13)
    assert weights.std() > 0.01


def test_equal_positives_are_weighted_by_one() -> None:
    p = replace(make_problem(), text=make_problem().image)
    assert loss_of(p, 0.5).item() == pytest.approx(loss_of(p).item(), rel=1e-13)


def test_a_row_without_negatives_counts_nothing() -> None:
    p = make_problem(columns=False)
    p.ids[:] = 0
    loss = DCLLoss(mask_duplicates=True)
    found = answer_of(lambda q: loss(features_of(q), pair_of(q))["contrastive"], p)
    assert found.loss == 0
    assert all((g == 0).all() for g in found.grads.values())


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0, 1000.0])
@pytest.mark.parametrize("sigma", [None, 0.01, 0.5])
def test_extreme_scales_are_finite(scale: float, sigma: float | None) -> None:
    found = answer_of(lambda q: loss_of(q, sigma), make_problem(scale))
    assert all(torch.isfinite(t).all() for t in (found.loss, *found.grads.values()))
