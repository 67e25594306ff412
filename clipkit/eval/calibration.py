"""Calibration of zero-shot probabilities, as learned and after temperature scaling.

Shapes: n images, C classes.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from clipkit.data.wds_folder import WdsFolder, open_folder
from clipkit.errors import ConfigError, DataError
from clipkit.eval.base import EvalResult
from clipkit.eval.classification import folder_facts, label_ranks
from clipkit.eval.embed import Embedder
from clipkit.eval.intervals import Interval, wilson
from clipkit.eval.reliability import (
    SCALES,
    Bins,
    bootstrap_interval,
    brier_scores,
    calibration_error,
    fit_scale,
    log_losses,
    log_probabilities,
    reliability_curve,
)
from clipkit.eval.zero_shot import class_features, exact_scores

_MOST_BINS = 1000
_KINDS: tuple[Bins, Bins] = ("mass", "width")


class CalibrationEval:
    """ECE, Brier score and NLL of zero-shot softmax at the learned and at a fitted temperature.

    The temperature is fitted by NLL on each of two seeded halves of the images and used on the
    other one. Names that begin with "fitted_" are after the fit. A half without a best temperature,
    as where every image is right, keeps the learned one; `details["fit"]` says so. ece_mass has
    bins of equal numbers of images, ece_width bins of equal width.

    Args:
        split: Folder or file prefix of the shards below the data folder.
        bins: Of the expected calibration error, at most 1000.
        seed: Of the halves and of the bootstrap.
    """

    reads: ClassVar[tuple[str, ...]] = ("classification",)

    def __init__(
        self, data: str, name: str, *, split: str = "test", bins: int = 15, seed: int = 0
    ) -> None:
        self.data, self.name, self.split = data, name, split
        self.bins, self.seed = bins, seed

    def check(self) -> WdsFolder:
        """Open the data set, as a run does before it trains.

        Raises:
            DataError: The folder does not hold a whole classification set of two images or more.
            ConfigError: A setting is out of range.
        """
        if not 1 <= self.bins <= _MOST_BINS or self.seed < 0:
            raise ConfigError(
                f"calibration: bins={self.bins}, seed={self.seed}; choose 1 to {_MOST_BINS} bins "
                f"and a seed of at least 0"
            )
        folder = open_folder(self.data, self.split, kind="classification")
        if len(folder) < 2:
            raise DataError(f"evaluation set '{self.data}': one image cannot be cut in halves")
        return folder

    def run(self, model: Embedder) -> EvalResult:
        """Evaluate on all ranks; every rank gets the result."""
        folder = self.check()
        labels = torch.tensor(folder.labels())
        classes = class_features(model, folder.classnames, folder.templates)
        scores = exact_scores(model.images(folder), classes)  # (n, C)
        fitted, fits = cross_fit(scores, labels, model.logit_scale, self.seed)
        scales: dict[str, float | Tensor] = {"": model.logit_scale, "fitted_": fitted}
        sides = {name: _side(scores, labels, scale) for name, scale in scales.items()}
        right = (label_ranks(scores, labels) < 1).double()
        rival = scores.scatter(1, labels[:, None], float("-inf")).max(dim=1).values
        ties = scores.gather(1, labels[:, None])[:, 0] == rival
        columns = {"acc1": right, "tie_rate": ties.double()}
        columns |= {f"{name}{k}": v for name, side in sides.items() for k, v in side.items()}
        values = {k: v.tolist() for k, v in columns.items() if not k.endswith("confidence")}
        records = [
            {
                "id": key,
                "class": folder.classnames[int(labels[row])],
                "confidence": float(columns["confidence"][row]),
                "fitted_confidence": float(columns["fitted_confidence"][row]),
                "values": {k: v[row] for k, v in values.items()},
            }
            for row, key in enumerate(folder.keys)
        ]
        metrics, intervals, curves = self._errors(sides, right.numpy())
        return EvalResult.from_records(
            "calibration",
            self.name,
            records,
            metrics=metrics,
            intervals=intervals,
            details={"logit_scale": model.logit_scale, "fit": fits, "reliability": curves},
            provenance=self._provenance(folder),
        )

    def _errors(
        self, sides: dict[str, dict[str, Tensor]], right: np.ndarray
    ) -> tuple[dict[str, float], dict[str, Interval], dict[str, Any]]:
        metrics, intervals, curves = {}, {}, {}
        for name, side in sides.items():
            confidence = side["confidence"].numpy()
            for kind in _KINDS:
                key = f"{name}ece_{kind}"

                def error(
                    rows: np.ndarray, confidence: np.ndarray = confidence, kind: Bins = kind
                ) -> float:
                    return calibration_error(confidence[rows], right[rows], self.bins, kind)

                metrics[key] = error(np.arange(len(right)))
                low, high = bootstrap_interval(error, len(right), self.seed)
                certain = low == high  # every draw agrees, as with a single image
                intervals[key] = wilson(metrics[key], len(right)) if certain else (low, high)
                curve = reliability_curve(confidence, right, self.bins, kind)
                curves[f"{name or 'learned_'}{kind}"] = curve
        return metrics, intervals, curves

    def _provenance(self, folder: WdsFolder) -> dict[str, Any]:
        return {
            **folder_facts(folder),
            "bins": self.bins,
            "scale_limits": list(SCALES),
            "seed": self.seed,
        }


def cross_fit(
    scores: Tensor, labels: Tensor, learned: float, seed: int
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Scales fitted on the half of the images that each is not in.

    Args:
        scores: (n, C) cosines.
        labels: (n,).
        learned: Scale that stays where a half has no best one.
        seed: Of the halves.

    Returns:
        (n, 1) fp64 scales, and of each half its images, its scale and how that was found.
    """
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(scores)))
    halves = order[: len(order) // 2], order[len(order) // 2 :]
    scales, fits = torch.empty(len(scores), 1, dtype=torch.float64), []
    for fit, test in (halves, halves[::-1]):
        found, how = fit_scale(scores[fit], labels[fit]), "least NLL"
        if found is None:
            right = bool((label_ranks(scores[fit], labels[fit]) < 1).all())
            reason = "every image is right" if right else f"no best scale within {SCALES}"
            found, how = learned, f"kept: {reason}"
        scales[test] = found
        fits.append({"images": len(fit), "logit_scale": found, "fit": how})
    return scales, fits


def _side(scores: Tensor, labels: Tensor, scale: float | Tensor) -> dict[str, Tensor]:
    """(n,) confidence, NLL and Brier score at one scale or (n, 1)."""
    log_p = log_probabilities(scores, scale)
    return {
        "confidence": log_p.max(dim=1).values.exp(),
        "nll": log_losses(log_p, labels),
        "brier": brier_scores(log_p, labels),
    }


PART = CalibrationEval
