"""Accuracy without labels from contrastive accuracy (CAME), Peng et al. 2023.

https://arxiv.org/abs/2308.11111, with a fixed model: no joint training. A line from contrastive
accuracy to zero-shot accuracy is fitted on synthetic shifts of a labelled set and read off at the
target's contrastive accuracy.

Shapes: n images, B images a batch, S shifts, D embed dim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from scipy import stats
from scipy.optimize import least_squares
from torch import Tensor

from clipkit.data.wds_folder import WdsFolder, open_folder
from clipkit.errors import ConfigError, DataError
from clipkit.eval.base import EvalResult, Record
from clipkit.eval.classification import folder_facts, label_ranks
from clipkit.eval.embed import Embedder, View
from clipkit.eval.intervals import Interval, Z, bootstrap_means, mean_interval
from clipkit.eval.out_of_distribution import open_beside
from clipkit.eval.shifts import augmented, make_shifts
from clipkit.eval.subset import Subset
from clipkit.eval.zero_shot import class_features, exact_scores

_HUBER = 1.345  # 95 % as efficient as least squares where errors are normal
_ROUNDS = 10  # outliers widen the first line's residuals, and with them the scale


class AccuracyEstimateEval:
    """Predicted zero-shot accuracy on a target set without its labels, by contrastive accuracy.

    contrastive_accuracy is the share of the target's augmented views whose nearest among all other
    views of their batch is the other view of the same image. shifts_rmse and shifts_spearman are of
    shifts predicted by the line through the others. Where the target has labels of the same
    classes, accuracy and estimate_error (predicted less true) stand beside the prediction.

    Args:
        split: Folder or file prefix of the shards below the data folder.
        target: Folder of the set to estimate; "" for the data itself. A relative one may also
            stand beside the data.
        target_split: Its split.
        num_shifts: Synthetic shifts that the line is fitted on; each costs three passes.
        max_images: Images drawn from the labelled and from the target set.
        batch: Images whose views compete; contrastive accuracy falls with it.
        regression: Least squares, or Huber's loss against outliers.
        seed: Of draws, shifts and views.
    """

    reads: ClassVar[tuple[str, ...]] = ("classification",)
    files: ClassVar[tuple[str, ...]] = ("target",)

    def __init__(
        self,
        data: str,
        name: str,
        *,
        split: str = "test",
        target: str = "",
        target_split: str = "test",
        num_shifts: int = 12,
        max_images: int = 512,
        batch: int = 64,
        regression: Literal["linear", "huber"] = "linear",
        seed: int = 0,
    ) -> None:
        self.data, self.name, self.split = data, name, split
        self.target, self.target_split = target, target_split
        self.num_shifts, self.max_images, self.batch = num_shifts, max_images, batch
        self.regression, self.seed = regression, seed

    def check(self) -> tuple[WdsFolder, WdsFolder]:
        """Open the labelled set and the target, as a run does before it trains.

        Raises:
            DataError: One is missing, not whole, or smaller than a batch.
            ConfigError: A setting is out of range.
        """
        if self.num_shifts < 5 or self.batch < 2 or self.seed < 0:
            raise ConfigError(
                "accuracy_estimate: num_shifts is at least 5, batch at least 2, seed at least 0"
            )
        folder = open_folder(self.data, self.split, kind="classification")
        target = folder
        if self.target:
            target = open_beside(self.data, self.target, self.target_split)
        for part in (folder, target):
            if min(len(part), self.max_images) < self.batch:
                raise DataError(
                    f"evaluation set '{part.root}': {min(len(part), self.max_images)} images do "
                    f"not fill a batch of {self.batch}; set a smaller batch"
                )
        return folder, target

    def run(self, model: Embedder) -> EvalResult:
        """Evaluate on all ranks; every rank gets the result."""
        folder, target_folder = self.check()
        source, target = self._draw(folder), self._draw(target_folder)
        classes = class_features(model, folder.classnames, folder.templates)
        labels = torch.tensor(source.labels())
        shifts = make_shifts(self.num_shifts, self.seed)
        x, y = np.empty(len(shifts)), np.empty(len(shifts))
        for s, shift in enumerate(shifts):
            x[s] = float(self._contrastive(model, source, shift)[0].mean())
            y[s] = float(_right(model.images(source, shift), classes, labels).mean())
        line = fit_line(x, y, self.regression)
        known = target_folder.classnames == folder.classnames
        known = known and target_folder.kind == "classification"
        columns = dict(zip(("contrastive_accuracy", "tie_rate"), self._contrastive(model, target)))
        if known:
            own = torch.tensor(target.labels())
            columns["accuracy"] = _right(model.images(target), classes, own)
        held = held_out(x, y, self.regression)
        metrics, intervals = _metrics(line, x, y, held, columns)
        named = zip(shifts, x.tolist(), y.tolist(), held.tolist())
        keys = ("shift", "contrastive_accuracy", "accuracy", "predicted")
        rows = [dict(zip(keys, (view.name, *numbers))) for view, *numbers in named]
        return EvalResult.from_records(
            "accuracy_estimate",
            self.name,
            _records(target.keys, columns),
            metrics=metrics,
            intervals=intervals,
            counts=dict.fromkeys(("shifts_rmse", "shifts_spearman"), len(shifts)),
            details={
                "shifts": rows,
                "line": {"slope": line.slope, "intercept": line.intercept},
            },
            provenance=self._provenance(folder, target_folder, len(source), len(target)),
        )

    def _draw(self, folder: WdsFolder) -> Subset:
        """A random order: batches of one class would be harder. Whole batches only."""
        count = min(len(folder), self.max_images)
        return Subset.draw(folder, count - count % self.batch, self.seed)

    def _contrastive(
        self, model: Embedder, source: Subset, before: View | None = None
    ) -> tuple[Tensor, Tensor]:
        views = [model.images(source, augmented(which, self.seed, before)) for which in (0, 1)]
        return contrastive_accuracy(views[0], views[1], self.batch)

    def _provenance(
        self, folder: WdsFolder, target: WdsFolder, images: int, target_images: int
    ) -> dict[str, Any]:
        return {
            **folder_facts(folder),
            "target": str(target.root),
            "target_split": self.target_split if self.target else self.split,
            "images": images,
            "target_images": target_images,
            "num_shifts": self.num_shifts,
            "batch": self.batch,
            "regression": self.regression,
            "seed": self.seed,
        }


def contrastive_accuracy(first: Tensor, second: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """How often the two views of an image find each other among all views of their batch.

    Random features give 1 / (2 batch - 1), views that coincide 1 unless two images do as well.

    Args:
        first: (n, D) unit rows.
        second: (n, D) the other views, in the same order.
        batch: B; what is left after whole batches is dropped.

    Returns:
        (k,) share of an image's two views that find the other strictly before all else, and (k,)
        share that tie with another; k is the multiple of B below n.
    """
    found, tied = [], []
    for start in range(0, len(first) - len(first) % batch, batch):
        views = torch.cat([first[start : start + batch], second[start : start + batch]])
        scores = exact_scores(views, views)  # (2B, 2B)
        scores.fill_diagonal_(float("-inf"))
        other = torch.arange(2 * batch).roll(batch)[:, None]
        positive = scores.gather(1, other)[:, 0]
        rival = scores.scatter(1, other, float("-inf")).max(dim=1).values
        found.append((positive > rival).double().view(2, batch).mean(dim=0))
        tied.append((positive == rival).double().view(2, batch).mean(dim=0))
    return torch.cat(found), torch.cat(tied)


@dataclass(frozen=True)
class Line:
    """y = intercept + slope * x, fitted on S points.

    Attributes:
        slope: Of y.
        intercept: At x = 0.
        count: S.
        centre: Mean of x.
        spread: Sum of squared deviations of x.
        residual: Standard deviation of y about the line, S - 2 degrees of freedom.
    """

    slope: float
    intercept: float
    count: int
    centre: float
    spread: float
    residual: float

    def at(self, x: float) -> float:
        """The accuracy predicted at x, within 0 .. 1."""
        return min(1.0, max(0.0, self.intercept + self.slope * x))

    def half_width(self, x: float, half_x: float) -> float:
        """Half of the 95 % prediction interval at x, itself known to -+ half_x."""
        lever = (x - self.centre) ** 2 / self.spread if self.spread > 0 else 0.0
        error = self.residual * math.sqrt(1 + 1 / self.count + lever)
        return math.hypot(float(stats.t.ppf(0.975, self.count - 2)) * error, self.slope * half_x)


def fit_line(x: np.ndarray, y: np.ndarray, regression: str = "linear") -> Line:
    """Least squares, or Huber's loss at 1.345 robust standard deviations of the residuals.

    A constant x tells nothing: the line is flat at the mean of y.
    """
    centre, spread = float(x.mean()), float(((x - x.mean()) ** 2).sum())
    slope = float(((x - centre) * y).sum() / spread) if spread > 0 else 0.0
    height = float(y.mean())
    for _ in range(_ROUNDS if regression == "huber" and spread > 0 else 0):
        residuals = y - height - slope * (x - centre)
        scale = max(1e-6, float(np.median(np.abs(residuals))) / 0.6745)
        height, slope = least_squares(
            lambda p: p[0] + p[1] * (x - centre) - y,
            (height, slope),
            loss="huber",
            f_scale=_HUBER * scale,
        ).x.tolist()
    errors = y - height - slope * (x - centre)
    deviation = math.sqrt(float((errors**2).sum()) / max(1, len(x) - 2))
    return Line(slope, height - slope * centre, len(x), centre, spread, deviation)


def held_out(x: np.ndarray, y: np.ndarray, regression: str) -> np.ndarray:
    """(S,) each point predicted by the line through the others."""
    keep = ~np.eye(len(x), dtype=bool)
    return np.array([fit_line(x[k], y[k], regression).at(x[i]) for i, k in enumerate(keep)])


def spearman(x: np.ndarray, y: np.ndarray) -> tuple[float, Interval]:
    """Rank correlation and its interval (Bonett & Wright 2000); 0 where one of them is constant."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0, (-1.0, 1.0)
    value = float(stats.spearmanr(x, y).statistic)
    half = Z * math.sqrt((1 + value**2 / 2) / (len(x) - 3))
    centre = math.atanh(max(-0.999999, min(0.999999, value)))
    return value, (math.tanh(centre - half), max(value, math.tanh(centre + half)))


def _metrics(
    line: Line, x: np.ndarray, y: np.ndarray, held: np.ndarray, columns: dict[str, Tensor]
) -> tuple[dict[str, float], dict[str, Interval]]:
    """The prediction, how far it can be trusted, and how far it was off."""
    contrastive = columns["contrastive_accuracy"].numpy()
    at = float(contrastive.mean())
    predicted = line.at(at)
    half = line.half_width(at, _half(mean_interval(contrastive)))
    squared = (held - y) ** 2
    low, high = np.percentile(np.sqrt(bootstrap_means(squared)), [2.5, 97.5]).tolist()
    order, order_interval = spearman(held, y)
    metrics = {
        "predicted_accuracy": predicted,
        "shifts_rmse": math.sqrt(float(squared.mean())),
        "shifts_spearman": order,
    }
    intervals = {
        "predicted_accuracy": (max(0.0, predicted - half), min(1.0, predicted + half)),
        "shifts_rmse": (low, high),
        "shifts_spearman": order_interval,
    }
    if "accuracy" in columns:
        right = columns["accuracy"].numpy()
        error = predicted - float(right.mean())
        reach = math.hypot(half, _half(mean_interval(right)))
        metrics["estimate_error"] = error
        intervals["estimate_error"] = (error - reach, error + reach)
    return metrics, intervals


def _half(interval: Interval) -> float:
    return (interval[1] - interval[0]) / 2


def _right(images: Tensor, classes: Tensor, labels: Tensor) -> Tensor:
    """(n,) 1 where the right class scores strictly best."""
    return (label_ranks(exact_scores(images, classes), labels) < 1).double()


def _records(keys: list[str], columns: dict[str, Tensor]) -> list[Record]:
    values = {name: column.tolist() for name, column in columns.items()}
    return [
        {"id": key, "values": {name: column[i] for name, column in values.items()}}
        for i, key in enumerate(keys)
    ]


PART = AccuracyEstimateEval
