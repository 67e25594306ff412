"""What tasks that name one class per image share: ranks of the right class, records, confusions.

Shapes: n images, C classes.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor

from clipkit.data.wds_folder import WdsFolder
from clipkit.eval.base import Record
from clipkit.eval.feature_cache import digest

_MATRIX = 60  # classes up to which the whole confusion matrix is kept


def label_ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """(n,) number of wrong classes that score at least as high as the right one."""
    return (scores >= scores.gather(1, labels[:, None])).sum(dim=1) - 1


def score_records(
    folder: WdsFolder,
    scores: Tensor,
    labels: Tensor,
    prefix: str = "",
    top: tuple[int, ...] = (1,),
) -> list[Record]:
    """Records with <prefix>acc<k> for each k, <prefix>mean_per_class_recall and tie_rate.

    Args:
        folder: The scored images.
        scores: (n, C) without NaN; ties with the right class count as wrong.
        labels: (n,).
        prefix: Of the metrics' names.
        top: The k.
    """
    ranks = label_ranks(scores, labels)
    right = scores.gather(1, labels[:, None])[:, 0].double()
    rival, predicted = scores.scatter(1, labels[:, None], float("-inf")).double().max(dim=1)
    predicted = torch.where(ranks < 1, labels, predicted)
    margins = (right - rival).nan_to_num(0.0, 0.0, 0.0)  # a single class has no rival
    names = folder.classnames
    columns = (labels, predicted, margins, right == rival, ranks)
    return [
        {
            "id": key,
            "class": names[label],
            "predicted": names[guess],
            "margin": margin,
            "values": {
                **{f"{prefix}acc{k}": float(rank < k) for k in top},
                f"{prefix}mean_per_class_recall": float(rank < 1),
                "tie_rate": float(tied),
            },
        }
        for key, label, guess, margin, tied, rank in zip(
            folder.keys, *(column.tolist() for column in columns)
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


def folder_facts(folder: WdsFolder) -> dict[str, Any]:
    """Provenance: the folder and its split, and its classes and templates where it has any."""
    facts: dict[str, Any] = {"data": str(folder.root), "split": folder.split}
    if folder.classnames:
        facts |= {
            "classes": len(folder.classnames),
            "templates": len(folder.templates),
            "templates_hash": digest(templates="\n".join(folder.templates)),
        }
    return facts
