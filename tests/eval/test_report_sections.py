"""Blocks of a result come and go with its details."""

import json

import pytest

from clipkit.eval import plots
from clipkit.eval.base import EvalResult
from clipkit.eval.intervals import wilson
from clipkit.eval.plain_text import number
from clipkit.eval.report_sections import blocks_of
from clipkit.eval.thumbnails import Thumbnails
from tests.eval.report_results import made_gap, made_up, store, zero_shot
from tests.fixtures_encoder import write_color_set


def blocks(result, notes=()):
    found, said = blocks_of(result, Thumbnails())
    assert said == list(notes)
    return {block.title: block for block in found}


def with_details(tmp_path, **details):
    return store(tmp_path, made_up({"m": 0.5}, details=details), "kind")


def test_zero_shot(tmp_path):
    found = blocks(zero_shot(tmp_path))
    assert list(found) == [
        "Confusion matrix", "Classes, worst first", "Most frequent confusions", "Hardest samples",
    ]  # fmt: skip
    assert "4 classes" in found["Confusion matrix"].alt
    name, n, recall = found["Classes, worst first"].rows[0]
    low, high = wilson(0.0, 1)
    assert (name, n.text, recall.text) == ("blue", "1", "0.0000")
    assert recall.interval == f"{number(low)} – {number(high)}"
    (confused,) = found["Most frequent confusions"].rows
    assert confused[:2] == ["blue", "green"] and confused[2].text == "1"
    worst, second = found["Hardest samples"].cards[:2]
    assert worst.key == "0005" and worst.right is False and second.right is True
    assert worst.lines[:2] == [("true", "blue"), ("predicted", "green")]
    assert len(worst.pictures) == 1


def test_worst_classes_are_the_lowest_and_of_equal_ones_the_largest(tmp_path):
    entries = [{"class": f"c{i}", "n": i + 1, "recall": 0.5 if i < 3 else 1.0} for i in range(40)]
    table = blocks(with_details(tmp_path, per_class=entries))["Worst classes"]
    assert [row[0] for row in table.rows[:3]] == ["c2", "c1", "c0"] and len(table.rows) == 12


def test_without_details_the_metrics_stand_in_a_table(tmp_path):
    (table,) = blocks(store(tmp_path, made_up({"m": 0.5}, {"m": (0.4, 0.6)}), "kind")).values()
    assert table.title == "Metrics"
    assert [(row[0], row[1].text) for row in table.rows] == [("n", "10"), ("m", "0.5000")]


def test_counts_are_no_metrics(tmp_path):
    (table,) = blocks(store(tmp_path, made_up({"captions": 50, "m": 0.5}), "kind")).values()
    assert [row[0] for row in table.rows] == ["n", "m"]


def test_unknown_details_are_ignored(tmp_path):
    assert list(blocks(with_details(tmp_path, anything=[1], more={"x": None}))) == ["Metrics"]


@pytest.mark.parametrize(
    "details, what",
    [
        ({"matrix": [[1, 2]], "classes": ["a"]}, "confusion matrix"),
        ({"matrix": [[1, None], [1, 1]], "classes": ["a", "b"]}, "confusion matrix"),
        ({"matrix": 7, "classes": ["a"]}, "confusion matrix"),
        ({"confusions": [["a", "b"]]}, "confusions"),
        ({"pca": {"image": [["x", 1]], "text": []}}, "principal components"),
        ({"pca": [1]}, "principal components"),
        ({"cosines": {"edges": [0, 1], "matched": [1, 2], "mismatched": [1]}}, "cosines"),
        ({"reliability": {"m": {"confidence": [1], "accuracy": [1], "n": [1]}}}, "reliability"),
        ({"reliability": {"m": [{"confidence": 1, "accuracy": None, "n": 1}]}}, "reliability"),
        ({"per_tag": [3]}, "tags"),
        ({"per_tag": {"a": {"n": 1, "acc": 1.0}}}, "tags"),
        ({"per_class": [{"recall": 1.0}]}, "worst classes"),
        ({"examples": [{"id": "a"}]}, "examples"),
        ({"examples": [{"id": "a", "top": []}]}, "examples"),
        ({"examples": {"a": 1}}, "examples"),
        ({"histograms": {"x": []}}, "score histograms"),
    ],
)
def test_details_of_another_shape_are_named_and_left_out(tmp_path, details, what):
    found, notes = blocks_of(with_details(tmp_path, **details), Thumbnails())
    assert notes[0] == f"left out, its details have an unknown shape: {what}"
    assert what not in [block.title.lower() for block in found]


def test_geometry(tmp_path):
    found = blocks(store(tmp_path, made_gap(), "modality_gap"))
    assert list(found) == ["Both modalities", "Cosines"]
    assert "2 image and 1 text" in found["Both modalities"].alt


def test_reliability_curves(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "reliability", lambda curves: drawn.append(curves) or "uri")
    curve = [
        {"confidence": 0.1, "accuracy": 0.2, "n": 5},
        {"confidence": 0.9, "accuracy": 0.8, "n": 6},
    ]
    both = with_details(tmp_path, reliability={"learned": curve, "fitted": curve})
    assert list(blocks(both)) == ["Reliability"]
    points = ([0.1, 0.9], [0.2, 0.8], [5.0, 6.0])
    assert drawn == [[("learned", *points), ("fitted", *points)]]


def test_tags_with_their_intervals_and_chance(tmp_path):
    more = {"chance": 0.25, "text_acc": 0.75, "text_acc_interval": [0.6, 0.9]}
    entries = [
        {"tag": "b", "n": 4, "acc": 0.5, "interval": [0.2, 0.8], **more},
        {"tag": "a", "n": 9, "acc": 0.25, "interval": [0.1, 0.5], **more},
    ]
    table = blocks(with_details(tmp_path, per_tag=entries))["Tags, worst first"]
    assert table.header == ["tag", "n", "acc", "text_acc", "chance"]
    assert [row[0] for row in table.rows] == ["a", "b"]
    shown = [value.interval for value in table.rows[0][2:]]
    assert shown == ["0.1000 – 0.5000", "0.6000 – 0.9000", ""]


def test_parts_with_holes(tmp_path):
    entries = [
        {"class": "x", "n": 3, "auroc": None, "interval": None},
        {"class": "y", "n": 2, "auroc": 0.5, "interval": [0.4, 0.6]},
    ]
    rows = blocks(with_details(tmp_path, per_class=entries))["Classes, worst first"].rows
    assert [row[0] for row in rows] == ["y", "x"] and rows[1][2] == ""
    assert rows[0][2].interval == "0.4000 – 0.6000"


def test_classes_without_recall_and_shares_are_not_what_they_are_sorted_by(tmp_path):
    rows = [
        {"class": "a", "n": 3, "prevalence": 0.1, "average_precision": 0.9},
        {"class": "b", "n": 3, "prevalence": 0.5, "average_precision": 0.2},
    ]
    table = blocks(with_details(tmp_path, per_class=rows))["Classes, worst first"]
    assert [row[0] for row in table.rows] == ["b", "a"]


def test_examples_show_images_and_captions_of_both_sides(tmp_path):
    root = write_color_set(tmp_path / "colors", [0, 2], ["red", "blue"])
    examples = [
        {
            "id": "0000",
            "rank": 1,
            "targets": [{"caption": "blue", "score": 0.5, "right": False}] * 9,
        },
        {"caption": "blue", "targets": [{"id": "0001", "score": 0.25, "right": True}]},
    ]
    where = {"data": str(root), "split": "test"}
    made = made_up({"m": 0.5}, details={"examples": examples}, provenance=where)
    to_text, to_image = blocks(store(tmp_path, made, "retrieval"))["Examples"].examples
    assert len(to_text.query.pictures) == 1 and ("rank", "1") in to_text.query.lines
    assert len(to_text.answers) == 5 and to_text.answers[0].pictures == []
    assert to_text.answers[0].lines == [("caption", "blue"), ("score", "0.5000")]
    assert to_text.answers[0].right is False and to_image.answers[0].right is True
    assert to_image.query.pictures == [] and len(to_image.answers[0].pictures) == 1


def test_retrieval_records_by_rank_captions_with_their_image(tmp_path):
    root = write_color_set(tmp_path / "colors", [0, 2], ["red", "blue"])
    records = [
        {"id": "0000", "unit": "image", "rank": 3, "values": {"r": 0.0}},
        {"id": "blue", "unit": "caption", "cluster": "0001", "rank": 9, "values": {"r": 0.0}},
        {"id": "red", "unit": "caption", "cluster": "many", "rank": 1, "values": {"r": 0.0}},
    ]
    where = {"data": str(root), "split": "test"}
    result = EvalResult.from_records("t", "pairs", records, provenance=where)
    cards = blocks(store(tmp_path, result, "retrieval"))["Hardest samples"].cards
    assert [card.key for card in cards] == ["blue", "0000", "red"]
    assert [len(card.pictures) for card in cards] == [1, 1, 0]


def test_selection_items_with_their_texts(tmp_path):
    root = write_color_set(tmp_path / "colors", [0, 2], ["red", "blue"])
    line = {"id": "q", "images": ["0001"], "texts": ["red", "blue"], "answer": 1, "tags": ["t"]}
    (root / "test" / "selection.jsonl").write_text(json.dumps(line))
    record = {"id": "q", "unit": "item", "tags": ["t"], "margin": -0.1, "values": {"acc": 0.0}}
    where = {"data": str(root), "split": "test"}
    result = EvalResult.from_records("t", "colors", [record], provenance=where)
    (card,) = blocks(store(tmp_path, result, "selection"))["Hardest samples"].cards
    assert card.lines[:2] == [("wrong", "red"), ("right", "blue")] and ("tags", "t") in card.lines
    assert len(card.pictures) == 1 and card.right is False


def test_a_data_set_that_is_gone_and_records_that_were_changed_are_said(tmp_path):
    result = zero_shot(tmp_path)
    (tmp_path / "colors").rename(tmp_path / "moved")
    found, notes = blocks_of(result, Thumbnails())
    assert notes == [f"without some or all pictures: {tmp_path / 'colors'} is not there any more"]
    cards = next(b for b in found if b.title == "Hardest samples").cards
    assert all(not card.pictures for card in cards) and cards[0].key == "0005"
    samples = tmp_path / "results" / "m" / "colors.zero_shot.samples.jsonl"
    samples.write_text(samples.read_text() + "\n")
    found, notes = blocks_of(result, Thumbnails())
    assert "Hardest samples" not in [b.title for b in found]
    assert len(notes) == 1 and "is not the file" in notes[0]
