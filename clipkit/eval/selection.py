"""Selection: which text belongs to the image, which image to the text; ties count as wrong.

One task for the compositional benchmarks: SugarCrepe, https://arxiv.org/abs/2306.14610; VALSE,
https://arxiv.org/abs/2112.07566; ARO, https://arxiv.org/abs/2210.01936; Winoground,
https://arxiv.org/abs/2204.03162; BiVLC, https://arxiv.org/abs/2406.09952; MMVP-VLM,
https://arxiv.org/abs/2401.06209; InpaintCOCO, https://arxiv.org/abs/2403.02875.

Shapes: I images and T texts of an item, P pairs of image and text over all items, D embed dim.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from clipkit.data.selection_set import SelectionItem, SelectionSet, open_selection
from clipkit.errors import ConfigError, DataError
from clipkit.eval.base import EvalResult, Record
from clipkit.eval.embed import Embedder
from clipkit.eval.intervals import Interval, jackknife_share, numbered, wilson
from clipkit.retrieval.scores import pair_scores

_PER_TAG = ("acc", "text_acc", "image_acc")


class SelectionEval:
    """Right text for the image, right image for the text, and both, of compositional benchmarks.

    text_acc: every image scores its own text strictly highest; image_acc: every text its own image;
    acc: all that the item asks. An item only has the metrics its shape defines. Of 2 x 2 items
    (Winoground's text, image and group score) also the four choices by themselves: BiVLC's
    Ipos_2T, Ineg_2T, Tpos_2I and Tneg_2I are first_image_text_acc, second_image_text_acc,
    first_text_image_acc and second_text_image_acc, "first text" being the first image's. Where one
    image meets several texts, caption_auroc tells scores of right texts from those of wrong ones.

    Args:
        split: Folder below the data folder that holds selection.jsonl.
        macro: Also report macro_acc, the mean over tags of the accuracy of items with that first
            tag (ARO).
        min_tag_count: Tags with fewer items do not count in macro_acc (25 for ARO's attributes).
        ignore_tags: Tags that do not count in macro_acc (ARO leaves out symmetric relations).
    """

    reads: ClassVar[tuple[str, ...]] = ("selection",)

    def __init__(
        self,
        data: str,
        name: str,
        *,
        split: str = "test",
        macro: bool = False,
        min_tag_count: int = 1,
        ignore_tags: tuple[str, ...] = (),
    ) -> None:
        self.data, self.name, self.split = data, name, split
        self.macro, self.min_tag_count, self.ignore_tags = macro, min_tag_count, list(ignore_tags)

    def check(self) -> SelectionSet:
        """Open the data set, as a run does before it trains.

        Raises:
            DataError: An item is wrong, an image is missing, or no tag is left to average over.
            ConfigError: min_tag_count is below 1.
        """
        if self.min_tag_count < 1:
            raise ConfigError(f"min_tag_count is {self.min_tag_count}; it must be at least 1")
        chosen = open_selection(self.data, self.split)
        if self.macro and not self._macro_tags(chosen):
            raise DataError(
                f"selection set '{chosen.root}': no tag has {self.min_tag_count} items to average "
                f"over; lower min_tag_count or set macro to false"
            )
        return chosen

    def run(self, model: Embedder) -> EvalResult:
        """Evaluate on all ranks; every rank gets the result."""
        chosen = self.check()
        scores = item_scores(model, chosen)
        records = [_record(item, score) for item, score in zip(chosen.items, scores)]
        if self.macro:
            tags = self._macro_tags(chosen)
            for record in records:
                if record["tag"] in tags:
                    record["values"]["macro_acc"] = record["values"]["acc"]
        metrics, intervals = _auroc(chosen.items, scores, records)
        shapes = Counter(f"{images}x{texts}" for images, texts in (i.shape for i in chosen.items))
        return EvalResult.from_records(
            "image_caption_selection",
            self.name,
            records,
            macro={"macro_acc": "tag"} if self.macro else None,
            metrics=metrics,
            intervals=intervals,
            details={"chance": _chances(chosen.items), "per_tag": _per_tag(chosen.items, records)},
            provenance={
                "data": str(chosen.root),
                "split": self.split,
                "shapes": dict(shapes),
                "min_tag_count": self.min_tag_count,
                "ignore_tags": self.ignore_tags,
            },
        )

    def _macro_tags(self, chosen: SelectionSet) -> set[str]:
        counts = Counter(item.tags[0] for item in chosen.items if item.tags)
        enough = {tag for tag, n in counts.items() if n >= self.min_tag_count}
        return enough - set(self.ignore_tags)


def item_scores(model: Embedder, chosen: SelectionSet) -> list[np.ndarray]:
    """(I, T) fp32 cosines of every item, each image and text embedded once."""
    images = model.images(chosen.source)  # (n, D)
    texts = list(dict.fromkeys(text for item in chosen.items for text in item.texts))
    number = {text: i for i, text in enumerate(texts)}
    features = model.texts(texts)  # (m, D)
    pairs = [
        (chosen.rows[image], number[text])
        for item in chosen.items
        for image in item.images
        for text in item.texts
    ]
    flat = pair_scores(images, features, *torch.tensor(pairs).T).numpy()
    ends = np.cumsum([math.prod(item.shape) for item in chosen.items])[:-1]
    return [part.reshape(item.shape) for part, item in zip(np.split(flat, ends), chosen.items)]


def margins(item: SelectionItem, scores: np.ndarray) -> tuple[list[float], list[float]]:
    """How far the right choice leads its best rival: (per image over texts, per text over images).

    Args:
        item: The item.
        scores: (I, T).

    Returns:
        The two lists; one is empty where there is nothing to choose. The second follows the order
        of the images that the texts belong to.
    """
    images, texts = item.shape
    if texts == 1:
        return [], [_lead(scores[:, 0], item.answer[0])]
    if images == 1:
        return [_lead(scores[0], item.answer[0])], []
    own = list(enumerate(item.answer))
    return [_lead(scores[i], t) for i, t in own], [_lead(scores[:, t], i) for i, t in own]


def _lead(scores: np.ndarray, right: int) -> float:
    return float(scores[right]) - float(np.delete(scores, right).max())


def _record(item: SelectionItem, scores: np.ndarray) -> Record:
    of_images, of_texts = margins(item, scores)
    both = of_images + of_texts
    values = {"acc": _all_above(both)}
    if of_images:
        values["text_acc"] = _all_above(of_images)
    if of_texts:
        values["image_acc"] = _all_above(of_texts)
    if item.shape == (2, 2):
        for place, image, text in zip(("first", "second"), of_images, of_texts):
            values[f"{place}_image_text_acc"] = float(image > 0)
            values[f"{place}_text_image_acc"] = float(text > 0)
    values["tie_rate"] = float(any(margin == 0 for margin in both))
    shown = item.files[item.answer[0] if item.shape[1] == 1 else 0]
    return {
        "id": item.id,
        "unit": "item",
        "cluster": shown,
        "tag": item.tags[0] if item.tags else "",
        "tags": list(item.tags),
        "margin": min(both),
        "text_margins": of_images,
        "image_margins": of_texts,
        "values": values,
    }


def _all_above(leads: list[float]) -> float:
    return float(all(lead > 0 for lead in leads))


def chance(images: int, texts: int) -> dict[str, float]:
    """Expected metrics of random scores without ties, by the shape of an item.

    A choice among K is right once in K; the N choices of as many images are independent. That both
    sides are right at once has probability (N - 1)! / (2N - 1)!: every diagonal score must beat
    its row and its column (1/6 for N = 2, as for Winoground's group score).
    """
    if texts == 1:
        return {"acc": 1 / images, "image_acc": 1 / images}
    if images == 1:
        return {"acc": 1 / texts, "text_acc": 1 / texts}
    side = (1 / texts) ** images
    group = math.factorial(images - 1) / math.factorial(2 * images - 1)
    return {"acc": group, "text_acc": side, "image_acc": side}


def _chances(items: list[SelectionItem]) -> dict[str, float]:
    """Metric -> chance level, the mean over the items that have it."""
    found: dict[str, list[float]] = {}
    for item in items:
        for name, value in chance(*item.shape).items():
            found.setdefault(name, []).append(value)
    return {name: math.fsum(values) / len(values) for name, values in found.items()}


def _per_tag(items: list[SelectionItem], records: list[Record]) -> list[dict[str, Any]]:
    """Accuracy by tag, the most frequent first; an item counts in each of its tags.

    Items of one image are not independent: Wilson's interval is over the images.
    """
    members: dict[str, list[int]] = {}
    for row, item in enumerate(items):
        for tag in dict.fromkeys(item.tags):
            members.setdefault(tag, []).append(row)
    table = []
    for tag, rows in sorted(members.items(), key=lambda pair: (-len(pair[1]), pair[0])):
        entry: dict[str, Any] = {"tag": tag, "n": len(rows)}
        levels = _chances([items[row] for row in rows])
        for name in _PER_TAG:
            own = [records[row] for row in rows if name in records[row]["values"]]
            if own:
                share = sum(r["values"][name] for r in own) / len(own)
                entry[name] = share
                prefix = "" if name == "acc" else f"{name}_"
                interval = wilson(share, len({r["cluster"] for r in own}))
                entry[f"{prefix}interval"] = list(interval)
                entry[f"{prefix}chance"] = levels[name]
        table.append(entry)
    return table


def _auroc(
    items: list[SelectionItem], scores: list[np.ndarray], records: list[Record]
) -> tuple[dict[str, float], dict[str, Interval]]:
    """Area under the ROC curve of right against wrong texts, over items of one image."""
    own = [row for row, item in enumerate(items) if len(item.images) == 1]
    if not own:
        return {}, {}
    clusters = numbered([records[row]["cluster"] for row in own])
    flat = np.concatenate([scores[row][0] for row in own])
    right = np.concatenate([np.arange(items[r].shape[1]) == items[r].answer[0] for r in own])
    of = np.repeat(clusters, [items[row].shape[1] for row in own])

    def statistic(kept: np.ndarray) -> float:
        there = np.isin(of, kept)
        return float(roc_auc_score(right[there], flat[there]))

    count = int(clusters.max()) + 1
    value = statistic(np.arange(count))
    return {"caption_auroc": value}, {"caption_auroc": jackknife_share(statistic, count)}


PART = SelectionEval
