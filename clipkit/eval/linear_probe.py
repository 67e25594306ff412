"""Linear probe: logistic regression on frozen features, Radford et al. 2021, appendix A.3.

The strength of the penalty is swept on samples cut from the training ones; the test split is only
scored. `probe_texts.py` has what it learns in place of images.

Shapes: n images, C classes, D embed dim, S draws of a few shots.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor

from clipkit.data.wds_folder import WdsFolder, open_folder
from clipkit.errors import ConfigError, DataError
from clipkit.eval.base import EvalResult
from clipkit.eval.classification import confusion, folder_facts, label_ranks, score_records
from clipkit.eval.embed import Embedder
from clipkit.eval.intervals import Interval, mean_interval
from clipkit.eval.logistic import Logistic, LogisticProblem
from clipkit.eval.probe_texts import (
    caption_features,
    centre_both,
    noisy_copies,
    prompt_features,
    rows_of_copies,
)

_LAST = 96  # log steps from C = 1e-6 to 1e6, 8 a decade
_SWEEP_TOLERANCE = 1e-4  # scikit-learn's own; the final fit is 100 times closer
_COARSE = 16
_SHOT_VALIDATION = 4  # images a class, at most, that choose C for a few shots


class LinearProbeEval:
    """Top-1, top-5 and mean per-class recall of a logistic regression on the train split.

    The features are the unit image features of the one embedding pass, the ones that meet texts;
    papers that probe an earlier layer without normalising report other numbers. C is swept on a
    part of the train split, then all of it is fitted. For k shots, k images a class are fitted and
    up to 4 others a class choose C; the interval covers the draws of shots and of test images.

    With `train_on` prompts or captions the classifier learns texts, with noise on them, and is
    scored on images as they are (CLOSE; with `centre` C3). C is chosen on held-out noisy texts.

    Args:
        split: Folder or file prefix of the shards that are scored.
        train_split: The same, of the shards that are learned from.
        shots: Images a class for few-shot probes, e.g. [1, 2, 4, 8, 16]; none by default.
        seeds: Draws of the shots, each with its own probe.
        validation_fraction: Part of each class of the train split that chooses C.
        seed: Of the validation cut, of the draws and of the noise.
        train_on: images; prompts: class names in the set's templates; captions: the train split's.
        noise: Standard deviation added to every dimension of a text. What counts is its length,
            noise * sqrt(dim): keep it when the dimension changes.
        copies: Noisy copies of each text.
        centre: Subtract the mean of the training texts from texts, and the mean of the train
            split's images from images, before the noise.
    """

    reads: ClassVar[tuple[str, ...]] = ("classification",)

    def __init__(
        self,
        data: str,
        name: str,
        *,
        split: str = "test",
        train_split: str = "train",
        shots: tuple[int, ...] = (),
        seeds: int = 3,
        validation_fraction: float = 0.2,
        seed: int = 0,
        train_on: Literal["images", "prompts", "captions"] = "images",
        noise: float = 0.0,
        copies: int = 1,
        centre: bool = False,
    ) -> None:
        self.data, self.name, self.split, self.train_split = data, name, split, train_split
        self.shots, self.seeds = tuple(dict.fromkeys(shots)), seeds
        self.validation_fraction, self.seed = validation_fraction, seed
        self.train_on, self.noise, self.copies, self.centre = train_on, noise, copies, centre

    @property
    def _reads_train(self) -> bool:
        """Whether a train split is wanted; prompts need class names only."""
        return self.train_on != "prompts" or self.centre

    def check(self) -> tuple[WdsFolder, WdsFolder]:
        """(train, test) folders.

        Raises:
            ConfigError: A setting is out of range.
            DataError: A split is missing, or a class has too few images for the shots.
        """
        if any(k < 1 for k in self.shots) or self.seeds < 1 or self.seed < 0:
            raise ConfigError("linear_probe: shots and seeds start at 1, seed at 0")
        if not 0 < self.validation_fraction < 1:
            raise ConfigError(
                f"linear_probe.validation_fraction={self.validation_fraction}: give 0 < x < 1"
            )
        self._check_texts()
        if not self._reads_train:
            test = open_folder(self.data, self.split, kind="classification")
            return test, test
        train, test = open_splits(self.data, self.train_split, self.split)
        if self.shots:
            self._check_shots(train)
        return train, test

    def _check_texts(self) -> None:
        if self.noise < 0 or self.copies < 1:
            raise ConfigError("linear_probe: noise starts at 0, copies at 1")
        if self.train_on == "images" and (self.noise or self.copies > 1 or self.centre):
            raise ConfigError(
                "linear_probe: noise, copies and centre are for texts; set train_on to prompts or "
                "captions"
            )
        if self.train_on != "images" and self.shots:
            raise ConfigError("linear_probe: shots count images; leave out shots, or train_on")

    def _check_shots(self, train: WdsFolder) -> None:
        counts = np.bincount(train.labels(), minlength=len(train.classnames))
        rare, most = int(counts.argmin()), max(self.shots)
        if counts[rare] <= most:
            raise DataError(
                f"evaluation set '{train.root}': class '{train.classnames[rare]}' has "
                f"{counts[rare]} {self.train_split} images, {most} shots need {most + 1} (one "
                f"chooses C); leave {most} out of linear_probe.shots"
            )

    def run(self, model: Embedder) -> EvalResult:
        """Evaluate on all ranks; every rank gets the result."""
        train, test = self.check()
        features, targets = self._training(model, train)
        images, labels = model.images(test), torch.tensor(test.labels())
        fit, held = cut_fraction(targets, self.validation_fraction, self.seed)
        if not len(held):
            what = f"{self.train_split} images" if self.train_on == "images" else self.train_on
            raise DataError(
                f"evaluation set '{train.root}': no class has two {what}, so none can choose C; a "
                f"linear probe needs more"
            )
        if self.centre:
            features, images = centre_both(features, images, model.images(train))
        features = noisy_copies(features, self.noise, self.copies, self.seed)
        fit, held = (rows_of_copies(rows, len(targets), self.copies) for rows in (fit, held))
        targets = targets.repeat(self.copies)
        bench = Bench(features, targets, len(train.classnames), model.encoder.device)
        c, start = bench.sweep(fit, held)
        probe = bench.problem(torch.arange(len(targets))).fit(c, start)
        records = score_records(test, probe.log_probabilities(images), labels, "lp_", (1, 5))
        found = [self._few(bench, k, images, labels) for k in self.shots]
        for few in found:
            for record, value in zip(records, few.right.mean(axis=0).tolist()):
                record["values"][few.metric] = value
        return EvalResult.from_records(
            "linear_probe",
            self.name,
            records,
            macro={"lp_mean_per_class_recall": "class"},
            intervals={few.metric: shots_interval(few.right) for few in found},
            details={
                **confusion(records, test.classnames),
                "sweep": bench.tried,
                "few_shot": [few.to_json() for few in found],
            },
            provenance=self._provenance(test, bench, probe, c),
        )

    def _training(self, model: Embedder, train: WdsFolder) -> tuple[Tensor, Tensor]:
        """(n, D) features of what is learned from, and its classes (n,)."""
        if self.train_on == "prompts":
            return prompt_features(model, train)
        if self.train_on == "captions":
            return caption_features(model, train)
        return model.images(train), torch.tensor(train.labels())

    def _few(self, bench: Bench, k: int, images: Tensor, labels: Tensor) -> FewShot:
        """Probes of k shots, one a seed."""
        found = FewShot(k, np.zeros((self.seeds, len(labels))))
        for draw in range(self.seeds):
            fit, held = cut_shots(bench.targets, k, self.seed + draw)
            own = Bench(bench.features, bench.targets, bench.num_classes, bench.device)
            c, probe = own.sweep(fit, held)
            scores = probe.log_probabilities(images)
            found.right[draw] = (label_ranks(scores, labels) < 1).double().numpy()
            found.c.append(c)
        return found

    def _provenance(
        self, test: WdsFolder, bench: Bench, probe: Logistic, c: float
    ) -> dict[str, Any]:
        return {
            **folder_facts(test),
            "train_split": self.train_split if self._reads_train else None,
            "train_samples": len(bench.targets) // self.copies,
            "C": c,
            "iterations": probe.iterations,
            "converged": probe.converged,
            "validation_fraction": self.validation_fraction,
            "seed": self.seed,
            "seeds": self.seeds,
            "fewshot_k": list(self.shots),
            "normalized": True,
            "train_on": self.train_on,
            "noise": self.noise,
            "noise_length": self.noise * math.sqrt(probe.weight.shape[1]),
            "copies": self.copies,
            "centre": self.centre,
        }


@dataclass
class FewShot:
    """Results of k shots.

    Attributes:
        shots: k.
        right: (S, n) 1 where a draw's probe is right on a test image.
        c: Chosen C of each draw.
    """

    shots: int
    right: np.ndarray
    c: list[float] = field(default_factory=list)

    @property
    def metric(self) -> str:
        """Its name."""
        return f"lp_acc1@{self.shots}shot"

    def to_json(self) -> dict[str, Any]:
        """Mean and standard deviation over draws; "sd" is null for a single one."""
        each = self.right.mean(axis=1)
        sd = float(each.std(ddof=1)) if len(each) > 1 else None
        return {
            "shots": self.shots,
            "mean": float(each.mean()),
            "sd": sd,
            "draws": each.tolist(),
            "C": self.c,
        }


class Bench:
    """Training features, and probes fitted to parts of them.

    Attributes:
        tried: What the sweeps saw: {"C", "validation_acc1", "validation_loss"} each.
    """

    def __init__(
        self, features: Tensor, targets: Tensor, num_classes: int, device: torch.device
    ) -> None:
        self.features, self.targets = features, targets  # (n, D), (n,)
        self.num_classes, self.device = num_classes, device
        self.tried: list[dict[str, float]] = []

    def problem(self, rows: Tensor) -> LogisticProblem:
        """What fits probes to these rows."""
        return LogisticProblem(
            self.features[rows], self.targets[rows], self.num_classes, self.device
        )

    def sweep(self, rows: Tensor, held: Tensor) -> tuple[float, Logistic]:
        """C that does best on the held-out rows, and the probe fitted with it on `rows`."""
        problem = self.problem(rows)
        images, labels = self.features[held], self.targets[held]
        probes: dict[int, Logistic] = {}

        def score(step: int) -> tuple[float, float]:
            near = min(probes, key=lambda i: abs(i - step), default=None)
            start = None if near is None else probes[near]
            probes[step] = problem.fit(c_of(step), start, tolerance=_SWEEP_TOLERANCE)
            found = probes[step].log_probabilities(images)
            accuracy = float((label_ranks(found, labels) < 1).double().mean())
            loss = -float(found.gather(1, labels[:, None]).double().mean())
            self.tried.append(
                {"C": c_of(step), "validation_acc1": accuracy, "validation_loss": loss}
            )
            return accuracy, -loss

        best = search(score)
        self.tried.sort(key=lambda row: row["C"])
        return c_of(best), probes[best]


def c_of(step: int) -> float:
    """C at a step of the grid, eight a decade from 1e-6."""
    return 10.0 ** (-6 + step / 8)


def search(score: Callable[[int], tuple[float, float]]) -> int:
    """The best step of 0 .. 96: every 16th, then ever closer around the best so far.

    Args:
        score: Step -> (validation accuracy, minus validation loss); the second settles ties.

    Returns:
        The step; of equal ones the lowest, which is the strongest penalty.
    """
    seen = {step: score(step) for step in range(0, _LAST + 1, _COARSE)}

    def best() -> int:
        return max(sorted(seen), key=lambda step: seen[step])

    width = _COARSE // 2
    while width:
        centre = best()
        for step in (centre - width, centre + width):
            if 0 <= step <= _LAST:
                seen[step] = score(step)
        width //= 2
    return best()


def cut_fraction(targets: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """(fit, held) sorted rows: a fraction of every class held out, none of a class of one."""

    def part(count: int) -> tuple[int, int]:
        held = min(max(1, round(fraction * count)), count - 1)
        return count - held, held

    return _cut(targets, part, seed)


def cut_shots(targets: Tensor, shots: int, seed: int) -> tuple[Tensor, Tensor]:
    """(fit, held) sorted rows: `shots` images of every class, and up to 4 others to choose C by.

    Fewer shots of a seed are among its more.
    """
    return _cut(targets, lambda count: (shots, min(shots, _SHOT_VALIDATION)), seed)


def _cut(
    targets: Tensor, part: Callable[[int], tuple[int, int]], seed: int
) -> tuple[Tensor, Tensor]:
    """The first rows of each class, shuffled by (seed, class), to fit; the next to hold out."""
    labels = targets.numpy()
    fit, held = [], []
    for label in np.unique(labels):
        rows = np.random.default_rng((seed, int(label))).permutation(
            np.flatnonzero(labels == label)
        )
        first, then = part(len(rows))
        fit.append(rows[:first])
        held.append(rows[first : first + then])
    return (
        torch.from_numpy(np.sort(np.concatenate(fit))),
        torch.from_numpy(np.sort(np.concatenate(held))),
    )


def shots_interval(right: np.ndarray) -> Interval:
    """Interval of few-shot accuracy over draws of shots and draws of test images.

    The two are independent: their distances from the mean add in squares (Zou & Donner 2008),
    Student's t for the few draws of shots. A single draw covers test images only.

    Args:
        right: (S, n) 0 or 1.
    """
    mean = float(right.mean())
    low, high = mean_interval(right.mean(axis=0))
    draws = len(right)
    if draws < 2:
        return low, high
    sd = float(right.mean(axis=1).std(ddof=1))
    spread = float(student.ppf(0.975, draws - 1)) * sd / math.sqrt(draws)
    below, above = math.hypot(mean - low, spread), math.hypot(high - mean, spread)
    return max(0.0, mean - below), min(1.0, mean + above)


def open_splits(data: str, train_split: str, split: str) -> tuple[WdsFolder, WdsFolder]:
    """(train, test) folders of a classification set, for tasks that learn from the one.

    Raises:
        ConfigError: They are the same.
        DataError: One is missing or not whole.
    """
    if train_split == split:
        raise ConfigError(f"train_split={train_split}: must be another split than the scored one")
    test = open_folder(data, split, kind="classification")
    try:
        train = open_folder(data, train_split, kind="classification")
    except DataError as error:
        raise DataError(f"{error}; name the split to learn from with train_split") from None
    return train, test


PART = LinearProbeEval
