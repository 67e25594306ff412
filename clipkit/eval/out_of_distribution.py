"""Detection of images from another data set, by zero-shot softmax and by WDiscOOD.

MCM: Ming et al. 2022, https://arxiv.org/abs/2211.13445. WDiscOOD: `wdiscood.py`.

Shapes: n images in the distribution, m outside, C classes, D embed dim.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from clipkit.data.wds_folder import WdsFolder, open_folder
from clipkit.errors import ConfigError, DataError
from clipkit.eval.base import EvalResult, Record
from clipkit.eval.classification import folder_facts
from clipkit.eval.embed import Embedder
from clipkit.eval.intervals import Interval, wilson
from clipkit.eval.subset import Subset
from clipkit.eval.wdiscood import fit
from clipkit.eval.zero_shot import class_features, exact_scores

_KEPT = 0.95  # share of images in the distribution that are accepted
_RESAMPLES = 500


class OutOfDistributionEval:
    """AUROC and FPR@95 of telling this set's images from another set's, by three scores.

    mcm is the largest softmax at temperature 1, max_softmax at the learned temperature, wdiscood
    the distance to the training images' classes. AUROC counts ties as wrong; fpr95 is the share of
    the other set that is accepted when 95 % of this one is.

    Args:
        split: Folder or file prefix of the shards below the data folder.
        ood: Folder of the other evaluation set; a relative one may also stand beside the data.
        ood_split: Its split.
        train_split: Split of the data whose features WDiscOOD learns from.
        max_train: Larger training splits are drawn from at random.
        alpha: WDiscOOD's weight of the distance outside the discriminants.
        num_discriminants: Of WDiscOOD; null for all, one less than there are classes.
        seed: Of the draw and of the bootstrap.
    """

    reads: ClassVar[tuple[str, ...]] = ("classification",)
    files: ClassVar[tuple[str, ...]] = ("ood",)

    def __init__(
        self,
        data: str,
        name: str,
        *,
        split: str = "test",
        ood: str,
        ood_split: str = "test",
        train_split: str = "train",
        max_train: int = 50000,
        alpha: float = 5.0,
        num_discriminants: int | None = None,
        seed: int = 0,
    ) -> None:
        self.data, self.name, self.split = data, name, split
        self.ood, self.ood_split, self.train_split = ood, ood_split, train_split
        self.max_train, self.alpha, self.seed = max_train, alpha, seed
        self.num_discriminants = num_discriminants

    def check(self) -> tuple[WdsFolder, WdsFolder, WdsFolder]:
        """Open the set, its training split and the other set, as a run does before it trains.

        Raises:
            DataError: One of them is not there or not whole.
            ConfigError: A setting is out of range, or both sets are the same.
        """
        discriminants = 1 if self.num_discriminants is None else self.num_discriminants
        if min(self.max_train - 1, discriminants) < 1 or min(self.alpha, self.seed) < 0:
            raise ConfigError(
                "out_of_distribution: max_train is at least 2, num_discriminants at least 1 or "
                "null, alpha and seed at least 0"
            )
        folder = open_folder(self.data, self.split, kind="classification")
        train = open_folder(self.data, self.train_split, kind="classification")
        other = open_beside(self.data, self.ood, self.ood_split)
        if len(folder.classnames) < 2:
            raise DataError(f"evaluation set '{self.data}': one class gives no softmax to compare")
        if other.place == folder.place:
            raise ConfigError("out_of_distribution: ood is the data set itself; name another one")
        return folder, train, other

    def run(self, model: Embedder) -> EvalResult:
        """Evaluate on all ranks; every rank gets the result."""
        folder, train, other = self.check()
        small = len(train) <= self.max_train
        source = train if small else Subset.draw(train, self.max_train, self.seed)
        classes = class_features(model, folder.classnames, folder.templates)
        discriminants = fit(
            model.images(source), torch.tensor(source.labels()), self.num_discriminants
        )
        sides: list[dict[str, np.ndarray]] = []
        for images in (model.images(folder), model.images(other)):
            cosines = exact_scores(images, classes)
            scores = {
                "mcm": confidence(cosines, 1.0),
                "max_softmax": confidence(cosines, model.logit_scale),
                "wdiscood": discriminants.score(images, self.alpha).float(),
            }
            sides.append({k: v.double().numpy() for k, v in scores.items()})
        found = {k: Detection(sides[0][k], sides[1][k]) for k in sides[0]}
        intervals: dict[str, Interval] = {}
        for k, detection in found.items():
            auroc, fpr = detection.intervals(self.seed)
            intervals |= {f"{k}_auroc": auroc, f"{k}_fpr95": fpr}
        return EvalResult.from_records(
            "out_of_distribution",
            self.name,
            _records(folder.keys, other.keys, found),
            intervals=intervals,
            details={"histograms": {k: d.histogram() for k, d in found.items()}},
            provenance=self._provenance(folder, other, len(source), len(discriminants.axes)),
        )

    def _provenance(
        self, folder: WdsFolder, other: WdsFolder, trained: int, discriminants: int
    ) -> dict[str, Any]:
        return {
            **folder_facts(folder),
            "ood": str(other.root),
            "ood_split": self.ood_split,
            "train_split": self.train_split,
            "train_images": trained,
            "alpha": self.alpha,
            "num_discriminants": discriminants,
            "seed": self.seed,
        }


def open_beside(data: str, other: str, split: str) -> WdsFolder:
    """Open the set at `other`, or the one of that name beside `data`.

    Raises:
        DataError: Neither is there, or it is not whole.
    """
    beside = Path(data).absolute().parent / other
    return open_folder(beside if beside.is_dir() and not Path(other).is_dir() else other, split)


def confidence(cosines: Tensor, scale: float) -> Tensor:
    """(n, C) cosines -> (n,) fp32 log odds of the largest softmax.

    They rank as the softmax does, but do not run into 1, where all sure images would tie.
    """
    best, place = (scale * cosines.double()).max(dim=1)
    rest = (scale * cosines.double()).scatter(1, place[:, None], float("-inf"))
    return (best - rest.logsumexp(dim=1)).float()


class Detection:
    """One score of both sets; higher is more like the distribution.

    Args:
        inside: (n,) scores of the distribution's images.
        outside: (m,) scores of the others.
    """

    def __init__(self, inside: np.ndarray, outside: np.ndarray) -> None:
        self.inside, self.outside = inside, outside
        ranked = np.sort(outside)
        below = np.searchsorted(ranked, inside)
        self.below = below / len(outside)  # (n,) share of the others strictly below
        self.ties = np.searchsorted(ranked, inside, side="right") / len(outside) - self.below
        kept = math.ceil(_KEPT * len(inside) - 1e-9)
        self.accepted = outside >= np.sort(inside)[-kept]  # (m,)

    @property
    def auroc(self) -> float:
        """P(inside > outside); ties count as wrong, where scikit-learn counts half of them."""
        return float(self.below.mean())

    @property
    def fpr95(self) -> float:
        """Share of the others at or above the highest threshold that 95 % of the inside reach."""
        return float(self.accepted.mean())

    def intervals(self, seed: int) -> tuple[Interval, Interval]:
        """Of AUROC and FPR@95, both sets resampled; Wilson's where every draw would agree."""
        rng = np.random.default_rng(seed)
        n, m = len(self.inside), len(self.outside)
        ranked = np.sort(self.outside)
        below = np.searchsorted(ranked, self.inside)
        order = np.argsort(-self.inside, kind="stable")
        draws = np.empty((_RESAMPLES, 2))
        for draw in draws:
            inner = np.bincount(rng.integers(0, n, n), minlength=n)
            outer = np.bincount(rng.integers(0, m, m), minlength=m)
            reach = np.concatenate([[0], np.cumsum(outer)])
            cut = int((np.cumsum(inner[order]) >= _KEPT * n - 1e-9).argmax())
            first = np.searchsorted(ranked, self.inside[order[cut]])
            draw[:] = (inner @ reach[below]) / (n * m), (m - reach[first]) / m
        bounds = []
        for value, column, size in ((self.auroc, 0, min(n, m)), (self.fpr95, 1, m)):
            low, high = np.percentile(draws[:, column], [2.5, 97.5]).tolist()
            bounds.append((low, high) if low < high else wilson(value, size))
        return bounds[0], bounds[1]

    def histogram(self, bins: int = 40) -> dict[str, Any]:
        """Counts of both sets over common edges."""
        edges = np.histogram_bin_edges(np.concatenate([self.inside, self.outside]), bins)
        sides = {"in": self.inside, "out": self.outside}
        counts = {k: np.histogram(v, edges)[0].tolist() for k, v in sides.items()}
        return {"edges": edges.tolist(), **counts}


def _records(inner: list[str], outer: list[str], found: dict[str, Detection]) -> list[Record]:
    """Images of both sets; the means of their values are the AUROC and the FPR@95."""
    inside = [
        {
            "id": key,
            "scores": {k: float(d.inside[i]) for k, d in found.items()},
            "values": {f"{k}_auroc": float(d.below[i]) for k, d in found.items()}
            | {f"{k}_tie_rate": float(d.ties[i]) for k, d in found.items()},
        }
        for i, key in enumerate(inner)
    ]
    outside = [
        {
            "id": key,
            "unit": "ood_image",
            "scores": {k: float(d.outside[i]) for k, d in found.items()},
            "values": {f"{k}_fpr95": float(d.accepted[i]) for k, d in found.items()},
        }
        for i, key in enumerate(outer)
    ]
    return inside + outside


PART = OutOfDistributionEval
