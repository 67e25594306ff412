"""Classification by descriptors, each asked for and denied (Xplainer), Pellegrini et al. 2023,
https://arxiv.org/abs/2303.13391.

Shapes: n images, C classes, O descriptors of all classes, D embed dim.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.config.parts import suggest
from clipkit.data.wds_folder import WdsFolder, open_folder
from clipkit.errors import ConfigError, DataError
from clipkit.eval.base import EvalResult, Record
from clipkit.eval.classification import confusion, folder_facts, score_records
from clipkit.eval.embed import Embedder
from clipkit.eval.feature_cache import digest
from clipkit.eval.intervals import Interval, jackknife_share
from clipkit.eval.multilabel import aurocs
from clipkit.eval.zero_shot import exact_scores


class DescriptionEval:
    """Classes by their descriptors: each has a probability, a class the geometric mean of its own.

    p(descriptor) is a softmax over two cosines, with the prompt that says the descriptor is there
    and the one that says it is not. A multilabel set gives the AUROC of each class and label_acc,
    the share of classes decided right by P > P_negative; a set of one class per image gives acc1.
    A tie is wrong in label_acc and acc1. In the AUROC two images of equal probability count half,
    as scikit-learn has it; the AUROC of out_of_distribution counts them as wrong.

    Args:
        split: Folder or file prefix of the shards below the data folder.
        descriptions: JSON file {class: [descriptor, ...]}; "" reads descriptions.json beside the
            set.
        positive: Prompt that affirms; {o} is the descriptor, {c} the class.
        negative: Prompt that denies.
        temperature: Cosines are divided by it; larger draws all probabilities towards 0.5.
    """

    reads: ClassVar[tuple[str, ...]] = ("multilabel", "classification")
    files: ClassVar[tuple[str, ...]] = ("descriptions",)

    def __init__(
        self,
        data: str,
        name: str,
        *,
        split: str = "test",
        descriptions: str = "",
        positive: str = "There are {o} indicating {c}",
        negative: str = "There are no {o} indicating {c}",
        temperature: float = 0.5,
    ) -> None:
        self.data, self.name, self.split, self.descriptions = data, name, split, descriptions
        self.positive, self.negative, self.temperature = positive, negative, temperature

    def check(self) -> tuple[WdsFolder, list[list[str]]]:
        """Open the data set and the descriptors of its classes.

        Raises:
            ConfigError: The temperature is not above 0, or a prompt has no {o}.
            DataError: The set is not whole, or a class has no descriptors.
        """
        if not self.temperature > 0:
            raise ConfigError(f"description: temperature is {self.temperature}; it must be above 0")
        for key, prompt in (("positive", self.positive), ("negative", self.negative)):
            if "{o}" not in prompt:
                raise ConfigError(f"description: {key} is '{prompt}'; put {{o}} for the descriptor")
        folder = open_folder(self.data, self.split)
        if folder.kind not in self.reads:
            raise DataError(
                f"evaluation set '{folder.root}' is of type {folder.kind}, not "
                f"{' or '.join(self.reads)}; use its task"
            )
        path = Path(self.descriptions) if self.descriptions else folder.root / "descriptions.json"
        return folder, read_descriptions(path, folder.classnames)

    def run(self, model: Embedder) -> EvalResult:
        """Evaluate on all ranks; every rank gets the result.

        Raises:
            DataError: No class of a multilabel set has images with and images without it.
        """
        folder, descriptors = self.check()
        found = self._probabilities(model, folder, descriptors)
        provenance = {
            **folder_facts(folder),
            "descriptors": sum(map(len, descriptors)),
            "descriptors_hash": digest(descriptors=json.dumps(descriptors)),
            "positive": self.positive,
            "negative": self.negative,
            "temperature": self.temperature,
        }
        rate = _multilabel if folder.kind == "multilabel" else _single_label
        parts = rate(folder, found, descriptors)
        return EvalResult.from_records("description", self.name, provenance=provenance, **parts)

    def _probabilities(
        self, model: Embedder, folder: WdsFolder, descriptors: list[list[str]]
    ) -> Probabilities:
        images = model.images(folder)  # (n, D)
        pairs = [(c, o) for c, own in zip(folder.classnames, descriptors) for o in own]
        affirmed, denied = (
            exact_scores(images, model.texts([_prompt(template, c, o) for c, o in pairs]))
            for template in (self.positive, self.negative)
        )
        counts = [len(own) for own in descriptors]
        return class_probabilities(affirmed, denied, counts, self.temperature)


@dataclass
class Probabilities:
    """What descriptors say.

    Attributes:
        descriptor: (n, O) fp64 probability that a descriptor is there.
        log_positive: (n, C) fp32 log of the class's probability.
        log_negative: (n, C) fp32 log of the probability that it is absent; the two need not add
            up to 1.
    """

    descriptor: Tensor
    log_positive: Tensor
    log_negative: Tensor


def class_probabilities(
    positive: Tensor, negative: Tensor, counts: list[int], temperature: float
) -> Probabilities:
    """P(class) = exp(mean over its descriptors of log p), and the same of 1 - p.

    Args:
        positive: (n, O) cosines with the prompts that affirm, class by class.
        negative: (n, O) cosines with those that deny.
        counts: (C,) descriptors of each class; adds up to O.
        temperature: Of the softmax over the two.
    """
    logits = (positive.double() - negative.double()) / temperature  # (n, O)
    means = [
        torch.stack([part.mean(dim=1) for part in F.logsigmoid(x).split(counts, dim=1)], dim=1)
        for x in (logits, -logits)
    ]
    return Probabilities(logits.sigmoid(), means[0].float(), means[1].float())


def read_descriptions(path: Path, classes: list[str]) -> list[list[str]]:
    """Descriptors of each class.

    Args:
        path: JSON file {class: [descriptor, ...]}.
        classes: The set's class names, in order.

    Raises:
        DataError: No such file, no such JSON, a class without descriptors, or a name that is none
            of the classes.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); write {{class: [descriptor, ...]}} "
            f"there, or name the file with descriptions="
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is no JSON: {str(error)[:100]}") from None
    whole = isinstance(found, dict) and all(
        isinstance(own, list) and own and all(isinstance(o, str) and o.strip() for o in own)
        for own in found.values()
    )
    if not whole:
        raise DataError(f"{path}: must be {{class: [descriptor, ...]}}, no list empty")
    unknown = [name for name in found if name not in classes]
    if unknown:
        raise DataError(f"{path}: '{unknown[0]}' is no class{suggest(unknown[0], classes)}")
    missing = [name for name in classes if name not in found]
    if missing:
        raise DataError(f"{path}: {len(missing)} classes have no descriptors, e.g. '{missing[0]}'")
    return [found[name] for name in classes]


def _prompt(template: str, name: str, descriptor: str) -> str:
    # split, since names and descriptors may themselves hold braces
    return name.join(part.replace("{o}", descriptor) for part in template.split("{c}"))


def _single_label(
    folder: WdsFolder, found: Probabilities, descriptors: list[list[str]]
) -> dict[str, Any]:
    """Records and details of a set of one class per image."""
    labels = torch.tensor(folder.labels())  # (n,)
    records = score_records(folder, found.log_positive, labels)
    names = folder.classnames
    truth = F.one_hot(labels, len(names)).bool().numpy()
    told = {"descriptors": _told(folder, found, truth, descriptors)}
    return {
        "records": records,
        "macro": {"mean_per_class_recall": "class"},
        "details": {**confusion(records, names), **told},
    }


def _multilabel(
    folder: WdsFolder, found: Probabilities, descriptors: list[list[str]]
) -> dict[str, Any]:
    """Records, AUROC and details of a set of several labels per image."""
    truth = folder.label_sets()  # (n, C)
    scores = found.log_positive.numpy()
    areas = aurocs(truth, scores)
    if not areas:
        raise DataError(
            f"evaluation set '{folder.root}': no class has images with it and images without it"
        )
    macro, bounds = auroc_intervals(truth, scores)
    said = (found.log_positive > found.log_negative).numpy()  # (n, C)
    ties = (found.log_positive == found.log_negative).numpy()
    right = (said == truth) & ~ties
    records: list[Record] = [
        {
            "id": key,
            "labels": [folder.classnames[c] for c in np.flatnonzero(truth[i])],
            "predicted": [folder.classnames[c] for c in np.flatnonzero(said[i])],
            "values": {
                "label_acc": float(right[i].mean()),
                "tie_rate": float(ties[i].mean()),
            },
        }
        for i, key in enumerate(folder.keys)
    ]
    per_class = [
        {
            "class": name,
            "n": int(truth[:, c].sum()),
            "auroc": areas.get(c),
            "interval": list(bounds[c]) if c in bounds else None,
        }
        for c, name in enumerate(folder.classnames)
    ]
    return {
        "records": records,
        "metrics": {"mean_auroc": float(np.mean(list(areas.values())))},
        "intervals": {"mean_auroc": macro},
        "details": {
            "per_class": per_class,
            "descriptors": _told(folder, found, truth, descriptors),
        },
    }


def auroc_intervals(truth: np.ndarray, scores: np.ndarray) -> tuple[Interval, dict[int, Interval]]:
    """Intervals of the mean AUROC over classes, and of each class's, by a jackknife over images.

    Args:
        truth: (n, C) bool; some class has images with and without it.
        scores: (n, C).

    Returns:
        Interval of the mean, and of each class that has an AUROC.
    """
    known: dict[bytes, dict[int, float]] = {}
    whole = aurocs(truth, scores)

    def area(c: int, kept: np.ndarray) -> float:
        key = kept.tobytes()  # every class deletes the same blocks
        if key not in known:
            known[key] = aurocs(truth[kept], scores[kept])
        return known[key].get(c, whole[c])  # a block may hold all images of a rare class

    def mean(kept: np.ndarray) -> float:
        return float(np.mean([area(c, kept) for c in whole]))

    n = len(truth)
    rarer = np.minimum(truth.sum(axis=0), (~truth).sum(axis=0))
    each = {c: jackknife_share(partial(area, c), n, int(rarer[c])) for c in whole}
    return jackknife_share(mean, n, min(int(rarer[c]) for c in whole)), each


def _told(
    folder: WdsFolder, found: Probabilities, truth: np.ndarray, descriptors: list[list[str]]
) -> list[dict[str, Any]]:
    """Each descriptor's mean probability on images with and without its class."""
    rows: list[dict[str, Any]] = []
    for c, own in enumerate(descriptors):
        for text in own:
            p = found.descriptor[:, len(rows)].numpy()
            sides = [p[truth[:, c]], p[~truth[:, c]]]
            means = [float(side.mean()) if len(side) else None for side in sides]
            rows.append(
                {
                    "class": folder.classnames[c],
                    "descriptor": text,
                    "with_class": means[0],
                    "without_class": means[1],
                }
            )
    return rows


PART = DescriptionEval
