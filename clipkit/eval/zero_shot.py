"""Zero-shot classification with prompt ensembles, Radford et al. 2021, https://arxiv.org/abs/2103.00020.

Shapes: n images, C classes, T templates, D embed dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.data.wds_folder import WdsFolder, open_folder
from clipkit.dist.group import World
from clipkit.eval.base import EvalResult, wilson
from clipkit.eval.embed import embed_images, embed_texts
from clipkit.towers.dual import FeatureEncoder


class ZeroShotEval:
    """Top-1, top-5 and mean per-class recall of images against class prompts; ties count as wrong.

    Args:
        split: Folder or file prefix of the shards below the data folder.
        batch_size: Images encoded at once per rank.
    """

    def __init__(self, data: str, name: str, *, split: str = "test", batch_size: int = 64) -> None:
        self.data, self.name, self.split, self.batch_size = data, name, split, batch_size

    def check(self) -> WdsFolder:
        """Open the data set, as a run does before it trains.

        Raises:
            DataError: The folder does not hold a whole classification set.
        """
        return open_folder(self.data, self.split, kind="classification")

    def run(self, model: FeatureEncoder, world: World) -> EvalResult:
        """Evaluate on all ranks; every rank gets the result."""
        folder = self.check()
        labels = torch.tensor(folder.labels())  # (n,)
        images = embed_images(model, folder, world, self.batch_size)  # (n, D)
        classes = class_features(model, folder.classnames, folder.templates, world)  # (C, D)
        ranks = label_ranks(images, classes, labels)
        n = len(labels)
        metrics = {
            "acc1": float((ranks < 1).double().mean()),
            "acc5": float((ranks < 5).double().mean()),
            "mean_per_class_recall": mean_per_class_recall(ranks < 1, labels),
            "n": n,
        }
        intervals = {k: wilson(metrics[k], n) for k in ("acc1", "acc5")}
        provenance = {
            "data": str(folder.root),
            "classes": len(folder.classnames),
            "templates": len(folder.templates),
        }
        return EvalResult("zeroshot_classification", self.name, metrics, intervals, provenance)


def class_features(
    model: FeatureEncoder, names: list[str], templates: list[str], world: World
) -> Tensor:
    """(C, D) unit rows: the mean over templates of each class's prompt features."""
    prompts = [template.replace("{c}", name) for name in names for template in templates]
    features = embed_texts(model, prompts, world).view(len(names), len(templates), -1)  # (C, T, D)
    return F.normalize(features.mean(dim=1), dim=-1)


def label_ranks(images: Tensor, classes: Tensor, labels: Tensor) -> Tensor:
    """(n,) number of wrong classes that score at least as high as the right one.

    Summed in fp64 and compared in fp32, so that equal features tie.
    """
    scores = (images.double() @ classes.double().T).float()  # (n, C)
    right = scores.gather(1, labels[:, None])
    return (scores >= right).sum(dim=1) - 1


def mean_per_class_recall(correct: Tensor, labels: Tensor) -> float:
    """Mean over the classes that occur of the share of their images that are correct."""
    return float(
        torch.stack([correct[labels == c].double().mean() for c in labels.unique()]).mean()
    )


PART = ZeroShotEval
