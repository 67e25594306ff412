"""The constant shift keeps exponents in float32's range, and says when it cannot."""

from __future__ import annotations

import math

import pytest
import torch

from clipkit.losses.link import OnlineSoftmax, Softmax


@pytest.mark.parametrize("slope", [1.0, 14.3, 60.0, 100.0])
def test_up_to_a_slope_of_100_every_cosine_fits(slope: float) -> None:
    link = Softmax(slope)
    highest = link.terms(torch.tensor([slope])).double() * 1e6  # a million negatives at cosine 1
    assert not link.lost(highest, torch.ones(1)), "cosine 1"
    assert not link.lost(link.terms(torch.zeros(1)).double(), torch.ones(1)), "cosine 0"


def test_beyond_that_the_usual_hardest_negatives_fit() -> None:
    link = Softmax(200.0)
    for cosine, fits in ((0.15, True), (0.7, True), (0.0, False), (1.0, False)):
        sums = link.terms(torch.tensor([200.0 * cosine])).double()
        assert bool(link.lost(sums, torch.ones(1))) != fits, cosine


def test_finished_sums_agree() -> None:
    u = torch.randn(3, 5, dtype=torch.float64)
    for link in (Softmax(70.0), OnlineSoftmax()):
        sums = link.begin(3, like=u)
        link.add(sums, link.terms(u.clone()), 1)
        torch.testing.assert_close(link.finish(sums), torch.logsumexp(u, 1))


def test_no_negative_is_minus_infinity_and_no_gradient() -> None:
    link = Softmax(10.0)
    value = link.finish(link.begin(1, like=torch.zeros(1)))
    assert value.item() == -math.inf
    assert link.coefficients(torch.ones(1), value).item() == 0.0
    assert not link.lost(torch.zeros(1), torch.zeros(1))
