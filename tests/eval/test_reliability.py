"""Calibration against scikit-learn, counts by hand and known temperatures."""

import math

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from clipkit.eval.reliability import (
    bin_numbers,
    bootstrap_interval,
    brier_scores,
    calibration_error,
    fit_scale,
    log_losses,
    log_probabilities,
    reliability_curve,
)


def synthetic(n=4000, classes=5, scale=12.0, seed=0):
    """Cosines and labels drawn from their softmax at `scale`: calibrated there and only there."""
    rng = np.random.default_rng(seed)
    scores = torch.from_numpy(rng.uniform(-0.3, 0.3, (n, classes))).float()
    p = log_probabilities(scores, scale).exp().numpy()
    labels = torch.tensor([rng.choice(classes, p=row / row.sum()) for row in p])
    return scores, labels


def confidence_and_right(scores, labels, scale):
    best = log_probabilities(scores, scale).max(dim=1)
    return best.values.exp().numpy(), (best.indices == labels).double().numpy()


def test_nll_and_brier_equal_scikit_learns():
    scores, labels = synthetic(300)
    log_p = log_probabilities(scores, 30.0)
    p = log_p.exp().numpy()
    assert float(log_losses(log_p, labels).mean()) == pytest.approx(
        log_loss(labels, p, labels=range(5))
    )
    assert float(brier_scores(log_p, labels).mean()) == pytest.approx(
        brier_score_loss(labels, p, labels=range(5), scale_by_half=False)
    )


def test_brier_and_nll_of_a_blind_model():
    log_p = log_probabilities(torch.zeros(3, 4), 100.0)
    labels = torch.tensor([0, 1, 3])
    assert brier_scores(log_p, labels).tolist() == pytest.approx([0.75] * 3)
    assert log_losses(log_p, labels).tolist() == pytest.approx([math.log(4)] * 3)


@pytest.mark.parametrize(("kind", "strategy"), [("width", "uniform"), ("mass", "quantile")])
def test_curve_and_error_equal_scikit_learns(kind, strategy):
    confidence, right = confidence_and_right(*synthetic(700), 40.0)
    accuracy, mean = calibration_curve(right, confidence, n_bins=15, strategy=strategy)
    curve = reliability_curve(confidence, right, 15, kind)
    assert [b["accuracy"] for b in curve] == pytest.approx(accuracy.tolist())
    assert [b["confidence"] for b in curve] == pytest.approx(mean.tolist())
    assert sum(b["n"] for b in curve) == 700
    weights = np.array([b["n"] for b in curve]) / 700
    assert calibration_error(confidence, right, 15, kind) == pytest.approx(
        float((weights * np.abs(accuracy - mean)).sum())
    )


def test_bins_have_equal_numbers_or_equal_width():
    confidence = np.random.default_rng(0).uniform(0.2, 1, 1500) ** 3
    assert np.bincount(bin_numbers(confidence, 15, "mass")).tolist() == [100] * 15
    assert bin_numbers(np.array([0.05, 0.1, 0.15, 0.95, 1.0]), 10, "width").tolist() == [
        0,
        0,
        1,
        9,
        9,
    ]


@pytest.mark.parametrize("kind", ["width", "mass"])
def test_error_by_hand_and_in_any_order(kind):
    confidence = np.repeat([0.9, 0.5], [10, 4])
    right = np.array([1.0] * 10 + [1.0] * 1 + [0.0] * 3)
    expected = (abs(10 - 9) + abs(1 - 2)) / 14  # one bin too modest, one too sure: no cancelling
    assert calibration_error(confidence, right, 15, kind) == pytest.approx(expected)
    order = np.random.default_rng(1).permutation(14)
    assert calibration_error(confidence[order], right[order], 15, kind) == pytest.approx(expected)


def test_the_fitted_scale_is_the_one_labels_were_drawn_with():
    scores, labels = synthetic(scale=12.0)
    found = fit_scale(scores, labels)
    assert found == pytest.approx(12.0, rel=0.06)
    losses = [
        float(log_losses(log_probabilities(scores, s), labels).mean())
        for s in (found * 0.98, found, found * 1.02)
    ]
    assert losses[1] == min(losses)
    errors = [
        calibration_error(*confidence_and_right(scores, labels, s), 15, "mass")
        for s in (3.0, found, 60.0)
    ]
    assert errors[1] < 0.03 < 0.2 < min(errors[0], errors[2])


@pytest.mark.parametrize(
    ("scores", "labels"),
    [
        (torch.eye(4), torch.arange(4)),  # the loss falls for ever
        (torch.tensor([[0.3, 0.3, 0.1]]), torch.tensor([1])),  # a tie: it falls to log 2
        (-torch.eye(4), torch.arange(4)),  # it rises from 0 on
        (torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)),  # flat
        (torch.ones(2, 1), torch.zeros(2, dtype=torch.int64)),  # one class
    ],
)
def test_without_a_minimum_there_is_no_scale(scores, labels):
    assert fit_scale(scores, labels) is None


def test_a_scale_for_every_sample():
    scores, scales = torch.rand(3, 4), torch.tensor([[1.0], [20], [3]]).double()
    rows = [log_probabilities(row[None], float(scale)) for row, scale in zip(scores, scales)]
    assert torch.equal(log_probabilities(scores, scales), torch.cat(rows))


def test_bootstrap_interval_of_a_share():
    values = np.repeat([1.0, 0.0], [30, 70])
    low, high = bootstrap_interval(lambda rows: float(values[rows].mean()), 100, seed=0)
    assert (high - low) / 2 == pytest.approx(1.96 * math.sqrt(0.3 * 0.7 / 100), rel=0.15)
    assert (low + high) / 2 == pytest.approx(0.3)
    assert bootstrap_interval(lambda rows: float(values[rows].mean()), 100, seed=0) == (low, high)
    assert bootstrap_interval(lambda rows: 1.0, 100, seed=0) == (1.0, 1.0)
