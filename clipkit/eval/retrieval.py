"""Image-text retrieval, both ways, with any number of captions per image.

Equal captions are one target, and a positive of each of their images.
Shapes: n images, m captions, P pairs, D embed dim.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from clipkit.data.wds_folder import WdsFolder, open_folder
from clipkit.eval.base import EvalResult, Record
from clipkit.eval.classification import folder_facts
from clipkit.eval.embed import Embedder
from clipkit.eval.intervals import RESAMPLES, Interval, numbered
from clipkit.retrieval.ranks import Side, rank_sides
from clipkit.retrieval.top_k import top_k

_KS = (1, 5, 10)
_EXAMPLES = 3  # of each way: so many of the worst, so many drawn
_SHOWN = 5
_SEED = 0


class RetrievalEval:
    """Recall@k and ranks of image-text retrieval, both ways; ties count as wrong.

    text_retrieval_recall@k: an image finds a caption of its own; image_retrieval_recall@k: the
    other way; mean_recall@1 is the mean of both. A caption that several images share is one target
    and a positive of each of them.

    Args:
        split: Folder or file prefix of the shards below the data folder.
    """

    reads: ClassVar[tuple[str, ...]] = ("retrieval",)

    def __init__(self, data: str, name: str, *, split: str = "test") -> None:
        self.data, self.name, self.split = data, name, split

    def check(self) -> WdsFolder:
        """Open the data set, as a run does before it trains.

        Raises:
            DataError: The folder does not hold a whole retrieval set.
        """
        return open_folder(self.data, self.split, kind="retrieval")

    def run(self, model: Embedder) -> EvalResult:
        """Evaluate on all ranks; every rank gets the result."""
        folder = self.check()
        matching = match(folder.keys, folder.captions())
        images, texts = model.images(folder), model.texts(matching.texts)  # (n, D), (m, D)
        to_text, to_image = rank_sides(images, texts, matching.pairs, world=model.world)
        assert to_image is not None  # both ways are asked for
        image_records = _records("text", "image", matching.keys, to_text)
        text_records = _records("image", "caption", matching.texts, to_image)
        for record, owner in zip(text_records, matching.owners):
            if owner is not None:
                record["cluster"] = owner
        metrics, intervals = _medians(image_records, text_records)
        keys, captions, pairs = matching.keys, matching.texts, matching.pairs
        ways = [
            Way("id", keys, captions, images, texts, pairs, to_text.ranks),
            Way("caption", captions, keys, texts, images, pairs.flip(1), to_image.ranks),
        ]
        return EvalResult.from_records(
            "zeroshot_retrieval",
            self.name,
            image_records + text_records,
            macro={"mean_recall@1": "unit"},
            metrics={"n": len(keys), "captions": len(captions), **metrics},
            intervals=intervals,
            counts={"text_median_rank": len(keys), "image_median_rank": len(captions)},
            details={"examples": [example for way in ways for example in examples(way)]},
            provenance={**folder_facts(folder), "seed": _SEED},
        )


@dataclass(frozen=True)
class Matching:
    """Which captions belong to which images.

    Attributes:
        keys: (n) of the images.
        texts: (m) different captions, by first occurrence.
        pairs: (P, 2) int64, (image, caption), none twice.
        owners: (m) key of a caption's image, None where several share it.
    """

    keys: list[str]
    texts: list[str]
    pairs: Tensor
    owners: list[str | None]


def match(keys: list[str], captions: list[list[str]]) -> Matching:
    """Number the captions of every image, equal ones once."""
    number: dict[str, int] = {}
    pairs = []
    for image, own in enumerate(captions):
        for text in dict.fromkeys(own):
            pairs.append((image, number.setdefault(text, len(number))))
    owners: list[str | None] = [None] * len(number)
    images_of = np.bincount([caption for _, caption in pairs], minlength=len(number))
    for image, caption in pairs:
        if images_of[caption] == 1:
            owners[caption] = keys[image]
    return Matching(keys, list(number), torch.tensor(pairs), owners)


def _records(wanted: str, unit: str, ids: list[str], side: Side) -> list[Record]:
    """One record a query; `wanted` is what it looks for, as CLIP_benchmark's names have it."""
    return [
        {
            "id": id,
            "unit": unit,
            "rank": rank + 1,
            "values": {
                **{f"{wanted}_retrieval_recall@{k}": float(rank < k) for k in _KS},
                f"{wanted}_mean_rank": float(rank + 1),
                f"{wanted}_tie_rate": float(tied),
                "mean_recall@1": float(rank < 1),
            },
        }
        for id, rank, tied in zip(ids, side.ranks.tolist(), side.tied.tolist())
    ]


def _medians(
    images: list[Record], captions: list[Record]
) -> tuple[dict[str, float], dict[str, Interval]]:
    """Median ranks with bootstrap intervals; images are the clusters."""
    metrics, intervals = {}, {}
    names = numbered([r.get("cluster", (r["unit"], r["id"])) for r in captions])
    for wanted, records, clusters in (
        ("text", images, np.arange(len(images))),
        ("image", captions, names),
    ):
        found = np.array([r["rank"] for r in records])
        metrics[f"{wanted}_median_rank"] = float(np.median(found))
        intervals[f"{wanted}_median_rank"] = median_interval(found, clusters)
    return metrics, intervals


def median_interval(values: np.ndarray, clusters: np.ndarray) -> Interval:
    """Percentile bootstrap of a median: (n,) values, whole clusters drawn at once."""
    order = np.argsort(values, kind="stable")
    values, clusters = values[order], clusters[order]
    count = int(clusters.max()) + 1
    rng = np.random.default_rng(_SEED)
    medians = np.empty(RESAMPLES)
    for r in range(RESAMPLES):
        drawn = np.bincount(rng.integers(0, count, count), minlength=count)  # (C,)
        reached = np.cumsum(drawn[clusters])  # copies of all values up to each
        middle = [(reached[-1] + 1) // 2, reached[-1] // 2 + 1]
        medians[r] = values[np.searchsorted(reached, middle)].mean()
    low, high = np.percentile(medians, [2.5, 97.5]).tolist()
    return low, high


@dataclass(frozen=True)
class Way:
    """One direction, for examples.

    Attributes:
        queries_are: "id" for images, "caption" for texts; targets are the other.
        queries: (N) ids or texts.
        targets: (M) of what they look for.
        query_features: (N, D).
        target_features: (M, D).
        pairs: (P, 2) positives.
        ranks: (N,).
    """

    queries_are: str
    queries: list[str]
    targets: list[str]
    query_features: Tensor
    target_features: Tensor
    pairs: Tensor
    ranks: Tensor


def examples(way: Way) -> list[dict[str, Any]]:
    """The queries with the worst ranks and some drawn by chance, with what was found instead."""
    worst = way.ranks.argsort(descending=True, stable=True)[:_EXAMPLES].tolist()
    others = sorted(set(range(len(way.ranks))) - set(worst))
    drawn = sorted(random.Random(_SEED).sample(others, min(_EXAMPLES, len(others))))  # noqa: S311
    chosen = worst + drawn
    scores, ids = top_k(way.query_features[chosen], way.target_features, _SHOWN)
    target_is = "caption" if way.queries_are == "id" else "id"
    found = []
    for query, own_scores, own_ids in zip(chosen, scores.tolist(), ids.tolist()):
        right = set(way.pairs[way.pairs[:, 0] == query, 1].tolist())
        found.append(
            {
                way.queries_are: way.queries[query],
                "rank": int(way.ranks[query]) + 1,
                "chosen": "worst" if query in worst else "drawn",
                "targets": [
                    {target_is: way.targets[t], "score": score, "right": t in right}
                    for t, score in zip(own_ids, own_scores)
                ],
            }
        )
    return found


PART = RetrievalEval
