"""Zero-shot classification with prompt ensembles, Radford et al. 2021, https://arxiv.org/abs/2103.00020.

Shapes: n images, C classes, T templates, D embed dim.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.data.wds_folder import WdsFolder, open_folder
from clipkit.eval.base import EvalResult
from clipkit.eval.classification import confusion, folder_facts, score_records
from clipkit.eval.embed import Embedder
from clipkit.retrieval.scores import tile_scores


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
        records = score_records(folder, scores, labels, top=(1, 5))
        return EvalResult.from_records(
            "zeroshot_classification",
            self.name,
            records,
            macro={"mean_per_class_recall": "class"},
            details=confusion(records, folder.classnames),
            provenance=folder_facts(folder),
        )


def class_features(model: Embedder, names: list[str], templates: list[str]) -> Tensor:
    """(C, D) unit rows: the mean over templates of each class's prompt features."""
    prompts = [template.replace("{c}", name) for name in names for template in templates]
    features = model.texts(prompts).view(len(names), len(templates), -1)  # (C, T, D)
    return F.normalize(features.mean(dim=1), dim=-1)


def exact_scores(images: Tensor, classes: Tensor) -> Tensor:
    """(n, C) fp32 cosines, each a function of its two rows alone: equal features always tie."""
    return tile_scores(images, classes)


PART = ZeroShotEval
