"""Negatives as a reader judged them, blind: 100 of the rules among 30 that are known to be bad.

The captions were written before the rules. `judged.jsonl` holds them in the order in which they
were read; whoever changes what the rules make lets a reader judge `sample_for_judging` anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clipkit.data.negatives import CaptionEditor
from tests.data.negatives.sample_for_judging import read_captions

JUDGED: list[dict[str, Any]] = [
    json.loads(line)
    for line in Path(__file__).with_name("judged.jsonl").read_text(encoding="utf-8").splitlines()
]
RULES = [line for line in JUDGED if line["made_by"] == "rules"]
BAD = [line for line in JUDGED if line["made_by"] == "known bad"]


def test_the_reader_saw_both_and_told_them_apart() -> None:
    assert (len(RULES), len(BAD)) == (100, 30)
    captions = {line["caption"] for line in read_captions()}
    assert all(line["caption"] in captions for line in JUDGED)
    assert sum(line["valid"] for line in RULES) >= 90
    assert sum(not line["valid"] for line in BAD) >= 25


def test_the_rules_still_make_what_was_judged() -> None:
    editor = CaptionEditor()
    made = [
        line["negative"] in {n.text for n in editor.candidates(line["caption"])} for line in RULES
    ]
    assert sum(made) >= 95, "the rules have changed: let a reader judge a new sample"


def test_the_rules_make_none_of_the_bad_ones() -> None:
    editor = CaptionEditor()
    for line in BAD:
        assert line["negative"] not in {n.text for n in editor.candidates(line["caption"])}, line
