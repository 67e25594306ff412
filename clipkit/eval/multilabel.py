"""Zero-shot classification of images with several labels: mean average precision.

Shapes: n images, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score, roc_auc_score

from clipkit.data.wds_folder import WdsFolder, open_folder
from clipkit.errors import DataError
from clipkit.eval.base import EvalResult, Record
from clipkit.eval.classification import folder_facts
from clipkit.eval.embed import Embedder
from clipkit.eval.intervals import Interval, jackknife_share
from clipkit.eval.zero_shot import class_features, exact_scores

Score = Callable[[np.ndarray, np.ndarray], float]  # (n,) labels, (n,) scores -> number


class MultilabelEval:
    """Mean average precision, AUROC and label ranking of images that have several labels each.

    A class's images are ranked by the cosine with its prompts. Average precision is not
    interpolated and is averaged over the classes that some image has; images with equal scores are
    taken together, so a constant model scores each class's share of the images. Label ranking
    average precision ranks the classes within an image, ties against the model.

    Args:
        split: Folder or file prefix of the shards below the data folder.
    """

    reads: ClassVar[tuple[str, ...]] = ("multilabel",)

    def __init__(self, data: str, name: str, *, split: str = "test") -> None:
        self.data, self.name, self.split = data, name, split

    def check(self) -> WdsFolder:
        """Open the data set, as a run does before it trains.

        Raises:
            DataError: The folder does not hold a whole multilabel set.
        """
        return open_folder(self.data, self.split, kind="multilabel")

    def run(self, model: Embedder) -> EvalResult:
        """Evaluate on all ranks; every rank gets the result.

        Raises:
            DataError: No image has a label.
        """
        folder = self.check()
        truth = folder.label_sets()  # (n, C)
        if not truth.any():
            raise DataError(f"evaluation set '{folder.root}': no {self.split} image has any label")
        images = model.images(folder)
        classes = class_features(model, folder.classnames, folder.templates)
        scores = exact_scores(images, classes).numpy()  # (n, C)
        found = {
            "mean_average_precision": average_precisions(truth, scores),
            "mean_auroc": aurocs(truth, scores),
        }
        metrics = {name: _mean(each) for name, each in found.items() if each}
        intervals = {
            "mean_average_precision": macro_interval(average_precisions, truth, scores),
            "mean_auroc": macro_interval(aurocs, truth, scores),
        }
        return EvalResult.from_records(
            "zeroshot_classification",
            self.name,
            _records(folder, truth, scores),
            metrics=metrics,
            intervals={name: intervals[name] for name in metrics},
            details={"per_class": _per_class(folder.classnames, truth, *found.values())},
            provenance={
                **folder_facts(folder),
                "classes_with_images": int(truth.any(axis=0).sum()),
            },
        )


def average_precisions(truth: np.ndarray, scores: np.ndarray) -> dict[int, float]:
    """Average precision of each class that some image has.

    Args:
        truth: (n, C) bool.
        scores: (n, C).
    """
    return _by_class(average_precision_score, truth.sum(axis=0) > 0, truth, scores)


def aurocs(truth: np.ndarray, scores: np.ndarray) -> dict[int, float]:
    """Area under the ROC curve of each class that some images have and some have not.

    Args:
        truth: (n, C) bool.
        scores: (n, C).
    """
    images = truth.sum(axis=0)
    return _by_class(roc_auc_score, (images > 0) & (images < len(truth)), truth, scores)


def _by_class(
    score: Score, chosen: np.ndarray, truth: np.ndarray, scores: np.ndarray
) -> dict[int, float]:
    return {int(c): float(score(truth[:, c], scores[:, c])) for c in np.flatnonzero(chosen)}


def _mean(each: dict[int, float]) -> float:
    return float(np.mean(list(each.values())))


def macro_interval(
    score: Callable[[np.ndarray, np.ndarray], dict[int, float]],
    truth: np.ndarray,
    scores: np.ndarray,
) -> Interval:
    """Jackknife over images of a mean over classes, within 0 .. 1.

    A bootstrap is no choice here: images drawn twice lift the average precision of a rare class.
    """
    values = [0.0]

    def statistic(kept: np.ndarray) -> float:
        each = score(truth[kept], scores[kept])
        if each:  # a part may lack the only image of the only class: then nothing is known of it
            values[0] = _mean(each)
        return values[0]

    return jackknife_share(statistic, len(truth))


def label_ranking(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(n,) label ranking average precision of each image; NaN for an image without labels.

    Of the classes that score at least as high as a right one, the share that is right; the mean
    over right ones (Tsoumakas et al. 2010).

    Args:
        truth: (n, C) bool.
        scores: (n, C).
    """
    above = rankdata(-scores, method="max", axis=1)  # (n, C) classes at least as high
    right = rankdata(np.where(truth, -scores, np.inf), method="max", axis=1)
    with np.errstate(invalid="ignore"):
        share: np.ndarray = (truth * right / above).sum(axis=1) / truth.sum(axis=1)
    return share


def _records(folder: WdsFolder, truth: np.ndarray, scores: np.ndarray) -> list[Record]:
    ranking = label_ranking(truth, scores).tolist()
    best_right = np.where(truth, scores, -np.inf).max(axis=1)
    best_wrong = np.where(truth, -np.inf, scores).max(axis=1)
    ties = (best_right == best_wrong).tolist()
    names = folder.classnames
    predicted = scores.argmax(axis=1).tolist()
    records: list[Record] = []
    for i, key in enumerate(folder.keys):
        values = {"tie_rate": float(ties[i])}
        if truth[i].any():
            values["label_ranking_average_precision"] = ranking[i]
        labels = [names[c] for c in np.flatnonzero(truth[i])]
        records.append(
            {"id": key, "labels": labels, "predicted": names[predicted[i]], "values": values}
        )
    return records


def _per_class(
    names: list[str], truth: np.ndarray, precisions: dict[int, float], areas: dict[int, float]
) -> list[dict[str, Any]]:
    """One row a class; null where a number is not defined."""
    return [
        {
            "class": name,
            "n": int(truth[:, c].sum()),
            "prevalence": float(truth[:, c].mean()),
            "average_precision": precisions.get(c),
            "auroc": areas.get(c),
        }
        for c, name in enumerate(names)
    ]


PART = MultilabelEval
