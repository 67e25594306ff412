"""The modality gap of matched images and texts, measured in several ways at once.

A centroid gap alone is confounded by spread, so the relative gap and a linear classifier stand
beside it. Sources: `geometry.py`.

Shapes: n images, m texts, N pairs, D embed dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from clipkit.data.wds_folder import WdsFolder, open_folder
from clipkit.errors import ConfigError, DataError
from clipkit.eval.base import EvalResult, Record
from clipkit.eval.classification import folder_facts
from clipkit.eval.embed import Embedder
from clipkit.eval.geometry import (
    BINS,
    LOGISTIC_C,
    UNIFORMITY_T,
    Cross,
    Pairs,
    centroid_gap,
    cosine_histogram,
    cross_statistics,
    effective_rank_interval,
    influence_interval,
    kernel_rows,
    rmg_interval,
    separability,
    uniformity_interval,
)
from clipkit.eval.intervals import Interval, wilson

_POINTS = 400

Found = dict[str, tuple[float, Interval]]


@dataclass(frozen=True)
class Links:
    """Which texts belong to which images, before anything is embedded.

    Attributes:
        texts: (m) different texts.
        of_image: (n) numbers of each image's texts.
        kept: Images that are measured, ascending.
    """

    texts: list[str]
    of_image: list[list[int]]
    kept: list[int]


class ModalityGapEval:
    """Centroid and relative gap, separability, alignment, uniformity, effective rank, cosines.

    Pairs are each image with each of its captions, or with the prompt of its class by the first
    template. Images and texts count once in what concerns one modality alone. Intervals are over
    images; a text counts with the first image that has it. The interval of linear_separability is
    Wilson's over groups of images that share no text: two unseen classes show little, however many
    images they have.

    Args:
        split: Folder or file prefix of the shards below the data folder.
        max_pairs: Larger sets are measured on whole images drawn up to so many pairs.
        seed: Of that draw, and of the split for the linear classifier.
    """

    reads: ClassVar[tuple[str, ...]] = ("retrieval", "classification")

    def __init__(
        self, data: str, name: str, *, split: str = "test", max_pairs: int = 5000, seed: int = 0
    ) -> None:
        self.data, self.name, self.split = data, name, split
        self.max_pairs, self.seed = max_pairs, seed

    def check(self) -> tuple[WdsFolder, Links]:
        """Open the data set and draw its pairs, as a run does before it trains.

        Raises:
            DataError: The folder does not hold a whole retrieval or classification set, or all its
                images share their texts.
            ConfigError: A setting is out of range.
        """
        if self.max_pairs < 10 or self.seed < 0:
            raise ConfigError(
                f"modality_gap: max_pairs={self.max_pairs}, seed={self.seed}; at least 10 and 0"
            )
        folder = open_folder(self.data, self.split)
        if folder.kind not in self.reads:
            raise DataError(
                f"evaluation set '{self.data}' is of type {folder.kind}; "
                f"modality_gap reads {' or '.join(self.reads)}"
            )
        links = self._link(folder)
        empty = torch.empty(len(folder), 0), torch.empty(len(links.texts), 0)
        if make_pairs(*empty, links).components.max() < 1:
            raise DataError(
                f"evaluation set '{self.data}': all {len(links.kept)} images share their texts, so "
                f"there is no mismatched pair; use images of at least two captions or classes"
            )
        return folder, links

    def _link(self, folder: WdsFolder) -> Links:
        own = _texts_of(folder)
        texts = list(dict.fromkeys(text for row in own for text in row))
        number = {text: i for i, text in enumerate(texts)}
        of_image = [[number[text] for text in dict.fromkeys(row)] for row in own]
        kept = draw_images([len(row) for row in of_image], self.max_pairs, self.seed)
        return Links(texts, of_image, kept)

    def run(self, model: Embedder) -> EvalResult:
        """Evaluate on all ranks; every rank gets the result."""
        folder, links = self.check()
        pairs = make_pairs(model.images(folder), model.texts(links.texts), links)
        cross = cross_statistics(pairs)
        tested, right = separability(pairs, self.seed)
        records = _records(
            [folder.keys[i] for i in links.kept], pairs, cross, dict(zip(tested, right))
        )
        found = {**_unimodal(pairs), **_crossmodal(pairs, cross)}
        intervals = {name: bounds for name, (_, bounds) in found.items()}
        intervals["matched_auroc"] = _auroc_interval(pairs, cross)
        clusters = len(np.unique(pairs.components[tested]))
        intervals["linear_separability"] = wilson(float(right.mean()), clusters)
        return EvalResult.from_records(
            "modality_gap",
            self.name,
            records,
            metrics={name: value for name, (value, _) in found.items()},
            intervals=intervals,
            counts=_counts(pairs, cross),
            details=_details(pairs, cross, self.seed),
            provenance=self._provenance(folder, pairs),
        )

    def _provenance(self, folder: WdsFolder, pairs: Pairs) -> dict[str, Any]:
        return {
            **folder_facts(folder),
            "images": len(pairs.images),
            "texts": len(pairs.texts),
            "pairs": len(pairs.of_image),
            "images_in_set": len(folder),
            "max_pairs": self.max_pairs,
            "template": folder.templates[0] if folder.templates else None,
            "uniformity_t": UNIFORMITY_T,
            "logistic_C": LOGISTIC_C,
            "seed": self.seed,
        }


def _texts_of(folder: WdsFolder) -> list[list[str]]:
    """Texts of each image: its captions, or its class's first prompt."""
    if folder.kind == "retrieval":
        return folder.captions()
    prompts = [folder.templates[0].replace("{c}", name) for name in folder.classnames]
    return [[prompts[label]] for label in folder.labels()]


def draw_images(counts: list[int], max_pairs: int, seed: int) -> list[int]:
    """Images, ascending: all, or as many drawn at random as have at most `max_pairs` pairs."""
    if sum(counts) <= max_pairs:
        return list(range(len(counts)))
    order = np.random.default_rng(seed).permutation(len(counts))
    fit = int((np.cumsum(np.array(counts)[order]) <= max_pairs).sum())
    return sorted(order[: max(2, fit)].tolist())


def make_pairs(images: Tensor, texts: Tensor, links: Links) -> Pairs:
    """Pairs of the images kept; texts of none of them are left out."""
    rows = enumerate(links.kept)
    flat = torch.tensor([(row, text) for row, i in rows for text in links.of_image[i]])
    used, of_text = flat[:, 1].unique(return_inverse=True)
    return Pairs(images[links.kept], texts[used], flat[:, 0].contiguous(), of_text)


def _records(keys: list[str], pairs: Pairs, cross: Cross, tested: dict[int, float]) -> list[Record]:
    """One record a pair; the image is its cluster."""
    squared = (2 - 2 * cross.matched).clamp(min=0)
    records = []
    for p, (image, text) in enumerate(zip(pairs.of_image.tolist(), pairs.of_text.tolist())):
        values = {
            "mean_matched_cosine": float(cross.matched[p]),
            "instance_distance": float(squared[p].sqrt()),
            "alignment": float(squared[p]),
            "matched_auroc": float(cross.below[p]),
            "tie_rate": float(cross.ties[p]),
        }
        if p in tested:
            values["linear_separability"] = float(tested[p])
        key = keys[image]
        records.append(
            {"id": f"{key}/{text}", "unit": "pair", "cluster": key, "values": values},
        )
    return records


def _unimodal(pairs: Pairs) -> Found:
    """What concerns the images or the texts alone."""
    found: Found = {}
    clusters = len(pairs.images)
    sides = {"image": (pairs.images, torch.arange(clusters)), "text": (pairs.texts, pairs.owner)}
    for side, (rows, owner) in sides.items():
        found[f"uniformity_{side}"] = uniformity_interval(kernel_rows(rows), owner, clusters)
        found[f"effective_rank_{side}"] = effective_rank_interval(rows, owner, clusters)
    return found


def _crossmodal(pairs: Pairs, cross: Cross) -> Found:
    """What lies between images and texts, and is no mean over pairs."""
    clusters = len(pairs.images)
    gap, influence = centroid_gap(pairs)
    cosine, kernel = cross.mean(0), cross.mean(1)
    uniformity = min(0.0, float(np.log(kernel)))
    image, text = cross.influences(1)
    log_parts = [(image / kernel, torch.arange(clusters)), (text / kernel, pairs.owner)]
    below_zero = (float("-inf"), 0.0)
    return {
        "centroid_gap": (
            gap,
            influence_interval(gap, [(influence, pairs.of_image)], clusters, (0.0, 2.0)),
        ),
        "rmg": rmg_interval(pairs, cross.matched),
        "uniformity_cross": (
            uniformity,
            influence_interval(uniformity, log_parts, clusters, below_zero),
        ),
        "mean_mismatched_cosine": (
            cosine,
            influence_interval(cosine, _mismatched(pairs, cross, 0), clusters, (-1.0, 1.0)),
        ),
    }


def _counts(pairs: Pairs, cross: Cross) -> dict[str, int]:
    """Images, texts or mismatched pairs, of what does not rest on all pairs."""
    sides = {"image": len(pairs.images), "text": len(pairs.texts)}
    names = ("uniformity", "effective_rank")
    counts = {f"{name}_{side}": n for name in names for side, n in sides.items()}
    mismatched = int(cross.image_counts.sum())
    return {**counts, "uniformity_cross": mismatched, "mean_mismatched_cosine": mismatched}


def _mismatched(pairs: Pairs, cross: Cross, column: int) -> list[tuple[Tensor, Tensor]]:
    image, text = cross.influences(column)
    return [(image, torch.arange(len(image))), (text, pairs.owner)]


def _auroc_interval(pairs: Pairs, cross: Cross) -> Interval:
    """Interval of P(matched > mismatched), where an image and a text count in both roles."""
    value = float(cross.below.mean())
    parts = [((cross.below - value) / len(cross.below), pairs.of_image)]
    parts += _mismatched(pairs, cross, 2)
    if value in (0.0, 1.0):  # no influence is left; the images alone bound it
        return wilson(value, len(pairs.images))
    return influence_interval(value, parts, len(pairs.images), (0.0, 1.0))


def _details(pairs: Pairs, cross: Cross, seed: int) -> dict[str, Any]:
    """What the report draws: both modalities on two axes, and the cosines' histograms."""
    histograms = torch.stack([cosine_histogram(cross.matched), cross.histogram])  # (2, BINS)
    used = histograms.sum(dim=0).nonzero().flatten()
    first, last = int(used[0]), int(used[-1]) + 1
    edges = [round(2 * i / BINS - 1, 4) for i in range(first, last + 1)]
    matched, mismatched = histograms[:, first:last].tolist()
    return {
        "cosines": {"edges": edges, "matched": matched, "mismatched": mismatched},
        "pca": project(pairs.images, pairs.texts, seed),
    }


def project(images: Tensor, texts: Tensor, seed: int) -> dict[str, Any]:
    """At most 400 rows of each modality on the first two principal axes of both together."""
    rng = np.random.default_rng(seed)
    shown = [
        rows.double()[np.sort(rng.permutation(len(rows))[:_POINTS])] for rows in (images, texts)
    ]
    both = torch.cat(shown)
    centre = both.mean(dim=0)
    _, sizes, axes = torch.linalg.svd(both - centre, full_matrices=False)
    axes = axes[:2] * torch.sign(axes[:2].sum(dim=1, keepdim=True) + 1e-30)  # a fixed orientation
    total = float((sizes**2).sum())
    share = [float(s**2) / total if total > 0 else 0.0 for s in sizes[:2]]
    image, text = [((rows - centre) @ axes.T).float().tolist() for rows in shown]
    return {"image": image, "text": text, "explained": share}


PART = ModalityGapEval
