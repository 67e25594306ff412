"""One result as blocks of a report: figures, tables and cards, each from the details it needs.

Details come from many tasks, also from outside the tree: what is unknown is ignored, what is
missing leaves its block out, and what is there in another shape is named at the end of the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from clipkit.errors import DataError
from clipkit.eval import plots
from clipkit.eval.base import Record
from clipkit.eval.intervals import wilson
from clipkit.eval.plain_text import number, shortened
from clipkit.eval.report_blocks import (
    Block,
    Card,
    CardsBlock,
    Example,
    ExamplesBlock,
    FigureBlock,
    TableBlock,
)
from clipkit.eval.report_data import Value, value, value_of
from clipkit.eval.results import StoredResult, is_number
from clipkit.eval.thumbnails import Item, Thumbnails

_WORST_CLASSES = 12
_WORST_SAMPLES = 18
_CONFUSIONS = 10
_EXAMPLES = 24
_ANSWERS = 5
_ROWS = 60  # of any other table
_LINES = {
    "true": "class",
    "predicted": "predicted",
    "caption": "caption",
    "tags": "tags",
    "margin": "margin",
    "rank": "rank",
    "chosen": "chosen",
    "score": "score",
}  # what a card calls a field of a record
_NARROW = 24  # classes up to which it has half of the page
_PANELS = 4
_NOWHERE = (math.nan, math.nan)  # the ends of no interval
_CLASSES = 100  # up to which a confusion matrix is drawn


Maker = Callable[[StoredResult, Thumbnails], Block | None]


def blocks_of(result: StoredResult, thumbnails: Thumbnails) -> tuple[list[Block], list[str]]:
    """All blocks that a result has something for, and notes on what could not be shown."""
    blocks, notes = [], []
    for title, make in _MAKERS:
        try:
            block = make(result, thumbnails)
        except DataError as error:
            notes.append(str(error))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError):
            # A task outside the tree may use the same word for something else.
            notes.append(f"left out, its details have an unknown shape: {title}")
        else:
            blocks += [block] if block else []
    if not blocks:
        blocks.append(_metrics(result))
    problem = thumbnails.problem(*_place(result))
    notes += [f"without some or all pictures: {problem}"] if problem else []
    return blocks, list(dict.fromkeys(notes))


def _confusion_matrix(result: StoredResult, _: Thumbnails) -> Block | None:
    matrix, classes = _details(result, "matrix"), _details(result, "classes")
    if not matrix or not classes or len(classes) > _CLASSES:
        return None
    rows = [_numbers(row) for row in matrix]
    if {len(classes)} != {len(rows), *map(len, rows)}:
        raise ValueError("not square")
    alt = f"confusion matrix of {len(classes)} classes"
    picture = plots.confusion(rows, list(map(str, classes)))
    return FigureBlock("Confusion matrix", picture, alt, wide=len(classes) > _NARROW)


def _confusions(result: StoredResult, _: Thumbnails) -> Block | None:
    found = _details(result, "confusions")
    if not found:
        return None
    rows: list[list[str | Value]] = [
        [_short(true), _short(predicted), Value(number(count))]
        for true, predicted, count in found[:_CONFUSIONS]
    ]
    return TableBlock("Most frequent confusions", ["true", "predicted", "samples"], rows)


def _worst_classes(result: StoredResult, _: Thumbnails) -> Block | None:
    found = _named(_details(result, "per_class"), "class")
    if not found or "recall" not in found[0][1]:
        return None
    worst = sorted(found, key=lambda entry: (entry[1]["recall"], -entry[1]["n"]))[:_WORST_CLASSES]
    rows: list[list[str | Value]] = [
        [_short(name), Value(number(e["n"])), value(e["recall"], *wilson(e["recall"], e["n"]))]
        for name, e in worst
    ]
    title = "Worst classes" if len(found) > len(worst) else "Classes, worst first"
    return TableBlock(title, ["class", "n", "recall"], rows, f"of {len(found)} classes")


def _parts(name: str, title: str, what: str) -> Maker:
    """A table of the parts of a result that stand in its details under `name`."""

    def make(result: StoredResult, _: Thumbnails) -> Block | None:
        found = _named(_details(result, name), what)
        if not found or (name == "per_class" and "recall" in found[0][1]):  # has its own table
            return None
        return _breakdown(title, what, found)

    return make


def _breakdown(title: str, what: str, found: list[tuple[str, dict[str, Any]]]) -> TableBlock:
    """A table of parts with every number they carry, the lowest by the part's own metric first."""
    keys = dict.fromkeys(k for _, entry in found for k, v in entry.items() if is_number(v))
    shown = [k for k in keys if k != "n"]
    shown.sort(key=lambda k: k == "prevalence" or k.endswith("chance"))
    order = sorted(found, key=lambda pair: _order(pair[1].get(shown[0])))
    rows: list[list[str | Value]] = []
    for name, entry in order[:_ROWS]:
        row: list[str | Value] = [_short(name)]
        row.append(Value(number(entry["n"])) if "n" in entry else "")
        row += [
            value(entry[k], *_ends(entry, k, k == shown[0])) if is_number(entry.get(k)) else ""
            for k in shown
        ]
        rows.append(row)
    note = f"the first {_ROWS} of {len(found)}" if len(found) > _ROWS else ""
    return TableBlock(title, [what, "n", *shown], rows, note)


def _order(entry: Any) -> float:
    return float(entry) if is_number(entry) else math.inf


def _ends(entry: dict[str, Any], key: str, first: bool) -> tuple[float, float]:
    """The interval of a number in a part: "<key>_interval", for the first also "interval"."""
    found = entry.get(f"{key}_interval")
    if found is None and first:
        found = entry.get("interval")
    low, high = found or _NOWHERE
    return (float(low), float(high)) if is_number(low) and is_number(high) else _NOWHERE


def _modality_clouds(result: StoredResult, _: Thumbnails) -> Block | None:
    found = _details(result, "pca")
    if not found:
        return None
    image, text = ([_numbers(p) for p in found[side]] for side in ("image", "text"))
    note = "Each point is one feature, projected on the two directions in which all vary most."
    alt = f"{len(image)} image and {len(text)} text features on two principal components"
    return FigureBlock("Both modalities", plots.clouds(image, text), alt, note)


def _cosine_histogram(result: StoredResult, _: Thumbnails) -> Block | None:
    found = _details(result, "cosines")
    if not found:
        return None
    edges, matched, mismatched = (_numbers(found[k]) for k in ("edges", "matched", "mismatched"))
    sides = [("matched pairs", matched), ("mismatched pairs", mismatched)]
    picture = plots.histograms([("cosine of image and text", edges, sides)])
    return FigureBlock("Cosines", picture, "histogram of cosines of matched and mismatched pairs")


def _score_histograms(result: StoredResult, _: Thumbnails) -> Block | None:
    found = _details(result, "histograms")
    if not found:
        return None
    panels = []
    for name, panel in list(found.items())[:_PANELS]:
        edges, inside, outside = (_numbers(panel[k]) for k in ("edges", "in", "out"))
        sides = [("in distribution", inside), ("out of distribution", outside)]
        panels.append((f"score of {name}", edges, sides))
    alt = "histograms of scores in and out of distribution"
    return FigureBlock("Scores", plots.histograms(panels), alt, wide=len(panels) > 1)


def _reliability_curve(result: StoredResult, _: Thumbnails) -> Block | None:
    found = _details(result, "reliability")
    if not found:
        return None
    drawn = []
    for name, bins in found.items():
        x, y, n = (_numbers([b[k] for b in bins]) for k in ("confidence", "accuracy", "n"))
        drawn.append((name, x, y, n))
    note = "A point is a bin of samples; its area grows with their number."
    alt = "accuracy against confidence for " + ", ".join(name for name, *_ in drawn)
    return FigureBlock("Reliability", plots.reliability(drawn), _short(alt, 200), note)


def _retrieval_examples(result: StoredResult, thumbnails: Thumbnails) -> Block | None:
    found = _details(result, "examples")
    if not found:
        return None
    examples = [
        Example(
            _card(result, thumbnails, example),
            [_card(result, thumbnails, target) for target in example["targets"][:_ANSWERS]],
        )
        for example in found[:_EXAMPLES]
    ]
    note = f"The query, then the {_ANSWERS} targets that score highest."
    return ExamplesBlock("Examples", examples, note)


def _worst_samples(result: StoredResult, thumbnails: Thumbnails) -> Block | None:
    records = result.records()
    by_margin = [r for r in records if is_number(r.get("margin"))]
    by_rank = [r for r in records if is_number(r.get("rank"))]
    if by_margin:
        worst = sorted(by_margin, key=lambda r: float(r["margin"]))
        note = "Lowest margin first: score of the right answer minus that of its best rival."
    elif by_rank:
        worst = sorted(by_rank, key=lambda r: -float(r["rank"]))
        note = "Highest rank of the right answer first."
    else:
        return None
    cards = [_card(result, thumbnails, record) for record in worst[:_WORST_SAMPLES]]
    return CardsBlock("Hardest samples", cards, note)


def _metrics(result: StoredResult) -> TableBlock:
    rows: list[list[str | Value]] = [
        [_short(name), value_of(result, name)] for name in result.metrics if name != "captions"
    ]
    return TableBlock("Metrics", ["metric", "value"], rows)


_MAKERS: tuple[tuple[str, Maker], ...] = (
    ("confusion matrix", _confusion_matrix),
    ("worst classes", _worst_classes),
    ("confusions", _confusions),
    ("classes", _parts("per_class", "Classes, worst first", "class")),
    ("tags", _parts("per_tag", "Tags, worst first", "tag")),
    ("relevant documents", _parts("relevant_documents", "Relevant documents", "modality")),
    ("shifts", _parts("shifts", "Shifts", "shift")),
    ("principal components", _modality_clouds),
    ("cosines", _cosine_histogram),
    ("score histograms", _score_histograms),
    ("reliability", _reliability_curve),
    ("examples", _retrieval_examples),
    ("hardest samples", _worst_samples),
)


def _card(result: StoredResult, thumbnails: Thumbnails, entry: Record) -> Card:
    """A record, or an example's query or target, with whichever of the usual fields it has."""
    place, lines = _place(result), []
    found: list[str | None] = []
    if entry.get("unit") == "item":
        item = thumbnails.item(*place, str(entry["id"]))
        if item is not None:
            found += item.pictures
            lines += _candidates(item)
    else:
        name = entry.get("cluster" if entry.get("unit") == "caption" else "id")
        sure = "class" in entry  # other records may have ids that are no keys of samples
        found += [thumbnails.get(*place, name, sure)] if isinstance(name, str) else []
    lines += [(what, _text(entry[k])) for what, k in _LINES.items() if _text(entry.get(k))]
    values = entry.get("values") or {}
    right = entry.get("right")
    if "class" in entry and "predicted" in entry:
        right = entry["class"] == entry["predicted"]
    elif "acc" in values:
        right = values["acc"] == 1
    key = _short(str(entry.get("id", "")), 90)
    pictures = [uri for uri in found if uri]
    return Card(pictures, key, lines, right if isinstance(right, bool) else None)


def _candidates(item: Item) -> list[tuple[str, str]]:
    """The texts of a selection item, the right one (of one image) told from the others."""
    single = len(item.answer) == 1
    return [
        (("right" if i == item.answer[0] else "wrong") if single else "text", _short(text, 140))
        for i, text in enumerate(item.texts[:6])
    ]


def _text(entry: Any) -> str:
    if is_number(entry):
        return number(entry)
    if isinstance(entry, list):
        return " | ".join(_short(str(part), 140) for part in entry[:6])
    return _short(entry, 200) if isinstance(entry, str) else ""


def _place(result: StoredResult) -> tuple[str, str]:
    return str(result.data.get("data") or ""), str(result.data.get("split") or "test")


def _details(result: StoredResult, name: str) -> Any:
    details = result.data.get("details")
    return details.get(name) if isinstance(details, dict) else None


def _named(found: Any, what: str) -> list[tuple[str, dict[str, Any]]]:
    """[{what: name, numbers}] as (name, entry) pairs."""
    return [(str(entry[what]), entry) for entry in found or []]


def _numbers(values: Sequence[Any]) -> list[float]:
    """Finite floats.

    Raises:
        ValueError: Something else is among them.
    """
    if not all(is_number(v) for v in values):
        raise ValueError("no numbers")
    return [float(v) for v in values]


def _short(text: Any, length: int = 80) -> str:
    return shortened(str(text), length)
