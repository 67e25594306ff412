"""Classification through a list of concepts (Concept Matrix Search), Sparse-CBM 2024,
https://arxiv.org/abs/2404.03323.

Shapes: n images, C classes, K concepts, D embed dim.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from clipkit.data.wds_folder import WdsFolder, open_folder
from clipkit.errors import DataError
from clipkit.eval.base import EvalResult
from clipkit.eval.classification import confusion, folder_facts, label_ranks, score_records
from clipkit.eval.embed import Embedder
from clipkit.eval.feature_cache import digest
from clipkit.eval.zero_shot import class_features, exact_scores

_SHOWN = 5  # concepts shown of each class


class ConceptsEval:
    """Accuracy when images and classes meet only through their cosines with a list of concepts.

    An image is the row of its cosines with every concept, a class likewise; cms_acc1 takes the
    class whose row has the largest cosine with the image's. All of CLIP's cosines share an offset,
    which makes every two rows alike: cms_centred_acc1 subtracts the mean image's row from images
    and the mean class's from classes first, so it needs the other (unlabelled) images of the set.
    acc1, plain zero-shot, stands beside. Ties are wrong; tie_rate is that of cms_acc1.

    Args:
        split: Folder or file prefix of the shards below the data folder.
        concepts: Text file, one concept a line; "" reads concepts.txt beside the set.
    """

    reads: ClassVar[tuple[str, ...]] = ("classification",)
    files: ClassVar[tuple[str, ...]] = ("concepts",)

    def __init__(self, data: str, name: str, *, split: str = "test", concepts: str = "") -> None:
        self.data, self.name, self.split, self.concepts = data, name, split, concepts

    def check(self) -> tuple[WdsFolder, list[str]]:
        """Open the data set and the list of concepts.

        Raises:
            DataError: The folder does not hold a whole classification set, or the list is missing,
                empty, or names a concept twice.
        """
        folder = open_folder(self.data, self.split, kind="classification")
        path = Path(self.concepts) if self.concepts else folder.root / "concepts.txt"
        return folder, read_concepts(path)

    def run(self, model: Embedder) -> EvalResult:
        """Evaluate on all ranks; every rank gets the result."""
        folder, concepts = self.check()
        labels = torch.tensor(folder.labels())  # (n,)
        images = model.images(folder)  # (n, D)
        classes = class_features(model, folder.classnames, folder.templates)  # (C, D)
        words = model.texts(concepts)  # (K, D)
        of_images, of_classes = exact_scores(images, words), exact_scores(classes, words)
        matched = concept_match(of_images, of_classes)
        records = score_records(folder, matched, labels, "cms_")
        for name, scores in (
            ("cms_centred_acc1", concept_match(of_images, of_classes, centred=True)),
            ("acc1", exact_scores(images, classes)),
        ):
            for record, rank in zip(records, label_ranks(scores, labels).tolist()):
                record["values"][name] = float(rank < 1)
        details = {
            **confusion(records, folder.classnames),
            "concepts": _strongest(folder, of_images, of_classes, labels, concepts),
        }
        provenance = {
            **folder_facts(folder),
            "concepts": len(concepts),
            "concepts_hash": digest(concepts="\n".join(concepts)),
        }
        return EvalResult.from_records(
            "concepts",
            self.name,
            records,
            macro={"cms_mean_per_class_recall": "class"},
            details=details,
            provenance=provenance,
        )


def concept_match(of_images: Tensor, of_classes: Tensor, *, centred: bool = False) -> Tensor:
    """Cosine over concepts of every image with every class.

    Args:
        of_images: (n, K) cosines of images with concepts.
        of_classes: (C, K) cosines of classes with concepts.
        centred: Subtract from each matrix the mean of its rows first.

    Returns:
        (n, C) fp32.
    """
    return exact_scores(_unit(of_images, centred), _unit(of_classes, centred))


def _unit(rows: Tensor, centred: bool) -> Tensor:
    """Rows of length 1; a row that centring leaves with rounding noise only becomes 0."""
    wide = rows.double()
    length = wide.norm(dim=1, keepdim=True)
    if centred:
        wide = wide - wide.mean(dim=0)
    left = wide.norm(dim=1, keepdim=True)
    return torch.where(left > 1e-6 * length, wide / left.clamp(min=1e-300), 0.0)


def read_concepts(path: Path) -> list[str]:
    """Concepts of a text file, one a line; only a line feed ends one, blank lines do not count.

    Raises:
        DataError: No such file, no concept in it, or one twice.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise DataError(
            f"{path}: cannot be read ({reason}); write one concept a line there, or name the "
            f"file with concepts="
        ) from None
    found = [line.strip() for line in text.split("\n") if line.strip()]
    if not found:
        raise DataError(f"{path}: is empty; write one concept a line")
    word, count = Counter(found).most_common(1)[0]
    if count > 1:
        raise DataError(f"{path}: '{word[:100]}' is there {count} times; each concept counts once")
    return found


def _strongest(
    folder: WdsFolder, of_images: Tensor, of_classes: Tensor, labels: Tensor, concepts: list[str]
) -> list[dict[str, Any]]:
    """Concepts that stand out most in each class's prompts and in its images."""

    def first(row: Tensor) -> list[str]:
        return [concepts[k] for k in row.topk(min(_SHOWN, len(concepts))).indices.tolist()]

    prompts = of_classes - of_classes.mean(dim=0)
    seen = of_images - of_images.mean(dim=0)
    rows: list[dict[str, Any]] = []
    for c, name in enumerate(folder.classnames):
        own = seen[labels == c]
        images = first(own.mean(dim=0)) if len(own) else []
        rows.append({"class": name, "of_prompts": first(prompts[c]), "of_images": images})
    return rows


PART = ConceptsEval
