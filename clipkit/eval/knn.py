"""Weighted nearest neighbours on frozen image features, Wu et al. 2018, arXiv:1805.01978.

Shapes: n queries, N training images, C classes, D embed dim, k neighbours.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from clipkit.data.wds_folder import WdsFolder
from clipkit.errors import ConfigError
from clipkit.eval.base import EvalResult
from clipkit.eval.classification import confusion, folder_facts, score_records
from clipkit.eval.embed import Embedder
from clipkit.eval.linear_probe import open_splits
from clipkit.retrieval.scores import tile_scores

_BLOCK = 1 << 24  # cosines held at once


class KnnEval:
    """Top-1 and mean per-class recall of a vote among the nearest images of the train split.

    Each of the k nearest votes for its class with exp(cosine / temperature). Training images as
    near as the k-th all vote, so their order never counts; classes with equal votes count as wrong.

    Args:
        split: Folder or file prefix of the shards that are scored.
        train_split: The same, of the shards whose images vote.
        k: Neighbours that vote.
        temperature: Of their weights.
    """

    reads: ClassVar[tuple[str, ...]] = ("classification",)

    def __init__(
        self,
        data: str,
        name: str,
        *,
        split: str = "test",
        train_split: str = "train",
        k: int = 20,
        temperature: float = 0.07,
    ) -> None:
        self.data, self.name, self.split, self.train_split = data, name, split, train_split
        self.k, self.temperature = k, temperature

    def check(self) -> tuple[WdsFolder, WdsFolder]:
        """(train, test) folders.

        Raises:
            ConfigError: k or temperature is out of range.
            DataError: A split is missing or not whole.
        """
        if self.k < 1 or not self.temperature > 0:
            raise ConfigError(
                f"knn: k={self.k}, temperature={self.temperature}: both must be above 0"
            )
        train, test = open_splits(self.data, self.train_split, self.split)
        if self.k > len(train):
            raise ConfigError(
                f"knn.k={self.k}: evaluation set '{train.root}' has only {len(train)} "
                f"{self.train_split} images; choose k up to that"
            )
        return train, test

    def run(self, model: Embedder) -> EvalResult:
        """Evaluate on all ranks; every rank gets the result."""
        train, test = self.check()
        voters, classes = model.images(train), torch.tensor(train.labels())
        images, labels = model.images(test), torch.tensor(test.labels())
        votes = count_votes(
            images,
            voters,
            classes,
            len(train.classnames),
            k=self.k,
            temperature=self.temperature,
            device=model.encoder.device,
        )
        records = score_records(test, votes, labels, "knn_")
        return EvalResult.from_records(
            "knn",
            self.name,
            records,
            macro={"knn_mean_per_class_recall": "class"},
            details=confusion(records, test.classnames),
            provenance={
                **folder_facts(test),
                "train_split": self.train_split,
                "train_samples": len(train),
                "k": self.k,
                "temperature": self.temperature,
            },
        )


def count_votes(
    images: Tensor,
    voters: Tensor,
    classes: Tensor,
    num_classes: int,
    *,
    k: int,
    temperature: float,
    device: torch.device | str = "cpu",
) -> Tensor:
    """(n, C) fp32 votes, each row relative to its nearest neighbour's.

    Args:
        images: (n, D) unit features of the queries.
        voters: (N, D) unit features, N >= k.
        classes: (N,) int64.
        num_classes: C.
        k: Neighbours; all that are as near as the k-th vote.
        temperature: Of the weights.
        device: Where to compute.
    """
    voters, classes = voters.to(device), classes.to(device)
    out = torch.empty(len(images), num_classes)
    rows = max(1, _BLOCK // len(voters))
    for start in range(0, len(images), rows):
        block = images[start : start + rows].to(device)
        near = tile_scores(block, voters)  # (rows, N)
        values, index = near.topk(min(k + 1, len(voters)), dim=1)
        weights = _weights(values[:, :k], values[:, :1], temperature)
        votes = torch.zeros(len(block), num_classes, dtype=torch.float64, device=device)
        votes.scatter_add_(1, classes[index[:, :k]], weights)
        tied = (values[:, k - 1] == values[:, -1]) & (values.shape[1] > k)
        for row in tied.nonzero()[:, 0].tolist():
            votes[row] = _tied_votes(near[row], values[row], classes, num_classes, k, temperature)
        out[start : start + rows] = votes.float().cpu()
    return out


def _weights(near: Tensor, nearest: Tensor, temperature: float) -> Tensor:
    """fp64; a factor common to a row changes no comparison and keeps exp in range."""
    return ((near.double() - nearest.double()) / temperature).exp()


def _tied_votes(
    near: Tensor, values: Tensor, classes: Tensor, num_classes: int, k: int, temperature: float
) -> Tensor:
    """(C,) votes of every training image at least as near as the k-th."""
    index = (near >= values[k - 1]).nonzero()[:, 0]
    votes = torch.zeros(num_classes, dtype=torch.float64, device=near.device)
    return votes.index_add_(0, classes[index], _weights(near[index], values[0], temperature))


PART = KnnEval
