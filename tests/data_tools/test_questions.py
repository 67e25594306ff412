"""Questions from samples that carry negatives."""

import json
from pathlib import Path

import pytest

from data_tools.questions import ask, write_questions

SAMPLE = {
    "txt": b"a cat",
    "json": json.dumps({"negatives": ["a dog", "a hat"], "negative_tags": ["x", "y"]}).encode(),
}


def test_one_question_for_each_negative(tmp_path: Path) -> None:
    items = ask("s7", SAMPLE)
    assert [(item["id"], item["texts"], item["tags"]) for item in items] == [
        ("s7/0", ["a cat", "a dog"], ["x"]),
        ("s7/1", ["a cat", "a hat"], ["y"]),
    ]
    assert {(tuple(item["images"]), item["answer"]) for item in items} == {(("s7",), 0)}
    assert write_questions(tmp_path, items) == 2
    lines = (tmp_path / "selection.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == items


def test_a_tag_for_each_negative_is_needed() -> None:
    with pytest.raises(ValueError, match="zip"):
        ask("s7", {**SAMPLE, "json": b'{"negatives": ["a dog"], "negative_tags": []}'})
