"""Zero-shot classification with prompt ensembles, Radford et al. 2021, https://arxiv.org/abs/2103.00020.

Shapes: n images, C classes, T templates, D embed dim.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.data.wds_folder import WdsFolder, open_folder
from clipkit.eval.base import EvalResult, Record
from clipkit.eval.embed import Embedder
from clipkit.eval.feature_cache import digest
from clipkit.retrieval.scores import tile_scores

_MATRIX = 60  # classes up to which the whole confusion matrix is kept


class ZeroShotEval:
    """Top-1, top-5 and mean per-class recall of images against class prompts; ties count as wrong.

    Args:
        split: Folder or file prefix of the shards below the data folder.
    """

    reads: ClassVar[tuple[str, ...]] = ("classification",)

    def __init__(self, data: str, name: str, *, split: str = "test") -> None:
        self.data, self.name, self.split = data, name, split

    def check(self) -> WdsFolder:
        """Open the data set, as a run does before it trains.

        Raises:
            DataError: The folder does not hold a whole classification set.
        """
        return open_folder(self.data, self.split, kind="classification")

    def run(self, model: Embedder) -> EvalResult:
        """Evaluate on all ranks; every rank gets the result."""
        folder = self.check()
        labels = torch.tensor(folder.labels())  # (n,)
        images = model.images(folder)  # (n, D)
        classes = class_features(model, folder.classnames, folder.templates)  # (C, D)
        scores = exact_scores(images, classes)  # (n, C)
        records = _records(folder, scores, labels)
        provenance = {
            "data": str(folder.root),
            "split": self.split,
            "classes": len(folder.classnames),
            "templates": len(folder.templates),
            "templates_hash": digest(templates="\n".join(folder.templates)),
        }
        return EvalResult.from_records(
            "zeroshot_classification",
            self.name,
            records,
            macro={"mean_per_class_recall": "class"},
            details=confusion(records, folder.classnames),
            provenance=provenance,
        )


def class_features(model: Embedder, names: list[str], templates: list[str]) -> Tensor:
    """(C, D) unit rows: the mean over templates of each class's prompt features."""
    prompts = [template.replace("{c}", name) for name in names for template in templates]
    features = model.texts(prompts).view(len(names), len(templates), -1)  # (C, T, D)
    return F.normalize(features.mean(dim=1), dim=-1)


def exact_scores(images: Tensor, classes: Tensor) -> Tensor:
    """(n, C) fp32 cosines, each a function of its two rows alone: equal features always tie."""
    return tile_scores(images, classes)


def label_ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """(n,) number of wrong classes that score at least as high as the right one."""
    return (scores >= scores.gather(1, labels[:, None])).sum(dim=1) - 1


def _records(folder: WdsFolder, scores: Tensor, labels: Tensor) -> list[Record]:
    right = scores.gather(1, labels[:, None])  # (n, 1)
    ranks = label_ranks(scores, labels)
    wrong = scores.scatter(1, labels[:, None], float("-inf"))
    rival, predicted = wrong.max(dim=1)
    predicted = torch.where(ranks < 1, labels, predicted)
    margins = right[:, 0] - rival
    names = folder.classnames
    return [
        {
            "id": key,
            "class": names[label],
            "predicted": names[guess],
            "margin": margin if len(names) > 1 else 0.0,
            "values": {
                "acc1": float(rank < 1),
                "acc5": float(rank < 5),
                "mean_per_class_recall": float(rank < 1),
                "tie_rate": float(margin == 0),
            },
        }
        for key, label, guess, margin, rank in zip(
            folder.keys,
            labels.tolist(),
            predicted.tolist(),
            margins.tolist(),
            ranks.tolist(),
        )
    ]


def confusion(records: list[Record], names: list[str]) -> dict[str, Any]:
    """Recall per class, the most frequent confusions, and the matrix where it is small."""
    pairs = Counter((r["class"], r["predicted"]) for r in records)
    totals = Counter(r["class"] for r in records)
    per_class = [
        {"class": name, "n": totals[name], "recall": pairs[name, name] / totals[name]}
        for name in names
        if totals[name]
    ]
    errors = [(a, b, n) for (a, b), n in pairs.most_common() if a != b][:20]
    details: dict[str, Any] = {"per_class": per_class, "confusions": errors}
    if len(names) <= _MATRIX:
        details["classes"] = names
        details["matrix"] = [[pairs[a, b] for b in names] for a in names]
    return details


PART = ZeroShotEval
