"""Calibration of probabilities: expected calibration error, Brier score, likelihood, temperature.

ECE: Naeini et al. 2015; with equal-mass bins, Nguyen & O'Connor 2015. Temperature scaling: Guo et
al. 2017, https://arxiv.org/abs/1706.04599.

Shapes: n samples, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

from clipkit.eval.intervals import Interval, Z

Bins = Literal["mass", "width"]
SCALES = (1e-2, 1e4)  # between which a scale of cosines is sought


def log_probabilities(scores: Tensor, scale: float | Tensor) -> Tensor:
    """(n, C) cosines -> (n, C) fp64 log softmax of scale * cosine, one scale or (n, 1)."""
    return torch.log_softmax(scale * scores.double(), dim=1)


def log_losses(log_p: Tensor, labels: Tensor) -> Tensor:
    """(n,) negative log-likelihoods in nats."""
    return -log_p.gather(1, labels[:, None])[:, 0]


def brier_scores(log_p: Tensor, labels: Tensor) -> Tensor:
    """(n,) squared distances of the probabilities from the right class, 0 .. 2 (Brier 1950)."""
    errors = log_p.exp()
    errors[torch.arange(len(labels)), labels] -= 1
    return (errors**2).sum(dim=1)


def fit_scale(scores: Tensor, labels: Tensor) -> float | None:
    """The scale of cosines of least log loss; the inverse of a temperature.

    The loss is convex in the scale. Where every image is right it falls for ever, where the scores
    say nothing of the labels it rises: None if it has no minimum between 0.01 and 10000.
    """
    ahead = scores.double() - scores.double().gather(1, labels[:, None])  # (n, C)

    def slope(log: float) -> float:
        return float((log_probabilities(scores, math.exp(log)).exp() * ahead).sum())

    low, high = math.log(SCALES[0]), math.log(SCALES[1])
    if not slope(low) < 0 < slope(high):
        return None
    return math.exp(float(brentq(slope, low, high)))


def bin_numbers(confidence: np.ndarray, bins: int, kind: Bins) -> np.ndarray:
    """(n,) bin of each confidence: of equal width over 0 .. 1, or of about equal numbers.

    Equal confidences share a bin, so the order of the samples does not matter.
    """
    if kind == "width":
        edges = np.linspace(0, 1, bins + 1)
    else:
        edges = np.quantile(confidence, np.linspace(0, 1, bins + 1))
    return np.searchsorted(edges[1:-1], confidence)


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int, kind: Bins) -> float:
    """Mean over samples of |accuracy - mean confidence| of their bin, 0 .. 1."""
    number = bin_numbers(confidence, bins, kind)
    gaps = np.bincount(number, weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def reliability_curve(
    confidence: np.ndarray, right: np.ndarray, bins: int, kind: Bins
) -> list[dict[str, Any]]:
    """Mean confidence, accuracy and number of samples of every bin that has some."""
    number = bin_numbers(confidence, bins, kind)
    counts = np.bincount(number, minlength=bins)
    sums = [np.bincount(number, weights=w, minlength=bins) for w in (confidence, right)]
    return [
        {
            "confidence": float(sums[0][b] / counts[b]),
            "accuracy": float(sums[1][b] / counts[b]),
            "n": int(counts[b]),
        }
        for b in np.flatnonzero(counts)
    ]


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float], n: int, seed: int, resamples: int = 300
) -> Interval:
    """95 % interval of a share: value -+ z sd over resamples.

    Percentiles will not do for a calibration error: resampling adds to it, and they can lie above
    the value.

    Args:
        statistic: (n,) indices, with repeats -> number between 0 and 1.
        n: Samples.
        seed: Of the draws.
        resamples: Draws.
    """
    rng = np.random.default_rng(seed)
    draws = [statistic(rng.integers(0, n, n)) for _ in range(resamples)]
    value, half = statistic(np.arange(n)), Z * float(np.std(draws, ddof=1))
    return max(0.0, value - half), min(1.0, value + half)
