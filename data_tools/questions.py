"""Selection items from samples that carry their own hard negatives.

A sample's json member holds "negatives", and "negative_tags" beside them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from clipkit.data.selection_set import FILE


def ask(key: str, sample: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """Ask for the caption against each of its negatives, one item each.

    Args:
        key: Of the sample in its shards, the name of its image.
        sample: Extension -> bytes; with txt and json.
    """
    meta = json.loads(sample["json"])
    return [
        {
            "id": f"{key}/{number}",
            "images": [key],
            "texts": [sample["txt"].decode(), negative],
            "answer": 0,
            "tags": [wrong],
        }
        for number, (negative, wrong) in enumerate(
            zip(meta["negatives"], meta["negative_tags"], strict=True)
        )
    ]


def write_questions(split: Path, items: Iterable[Mapping[str, Any]]) -> int:
    """Write the items of a split; returns how many."""
    lines = [json.dumps(item) + "\n" for item in items]
    (split / FILE).write_text("".join(lines), encoding="utf-8")
    return len(lines)
