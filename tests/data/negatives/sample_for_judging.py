"""Draws the captions whose negatives people judge.

python -m tests.data.negatives.sample_for_judging OUT.jsonl
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from clipkit.data.negatives import CaptionEditor

CAPTIONS = Path(__file__).with_name("captions.jsonl")  # written before any rule was
SEED = 20261


def read_captions() -> list[dict[str, str]]:
    """Source and caption of each, in the file's order."""
    return [json.loads(line) for line in CAPTIONS.read_text(encoding="utf-8").splitlines()]


def sample_for_judging(count: int = 100, seed: int = SEED) -> list[dict[str, str]]:
    """Captions in an order drawn by `seed`, of which those without a negative are passed over.

    Returns:
        caption, negative, kind and style of each.
    """
    captions, editor = read_captions(), CaptionEditor()
    rng = np.random.default_rng(seed)
    found: list[dict[str, str]] = []
    for number in rng.permutation(len(captions)):
        caption = captions[number]["caption"]
        for made in editor.negatives(caption, 1, rng):
            found.append({"caption": caption, "negative": made.text, "kind": made.kind,
                          "style": made.style})  # fmt: skip
        if len(found) == count:
            break
    return found


def share_without() -> dict[str, float]:
    """Source -> share of its captions of which the rules make no negative."""
    editor, captions = CaptionEditor(), read_captions()
    none = Counter(c["source"] for c in captions if not editor.candidates(c["caption"]))
    return {
        source: none[source] / n for source, n in Counter(c["source"] for c in captions).items()
    }


if __name__ == "__main__":
    lines = [json.dumps(line, ensure_ascii=False) for line in sample_for_judging()]
    Path(sys.argv[1]).write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(share_without())
