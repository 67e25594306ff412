"""Records of one class per image by hand: ties, a single class, infinities; facts of a folder."""

import json

import pytest
import torch

from clipkit.data.wds_folder import open_folder
from clipkit.eval.classification import confusion, folder_facts, label_ranks, score_records
from tests.fixtures_encoder import COLORS, write_color_set

NAMES = list(COLORS)
INF = float("inf")


def test_label_ranks_by_hand():
    scores = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 1.0, 0.0], [0.0, 0.0, 5.0]])
    assert label_ranks(scores, torch.tensor([0, 2, 0, 2])).tolist() == [0, 2, 1, 0]


@pytest.mark.parametrize("prefix", ["", "lp_"])
def test_records_by_hand(tmp_path, prefix):
    folder = open_folder(write_color_set(tmp_path, [0, 1, 2]))
    rows = [[3.0, 1, 2, 0], [2, 2, 1, 0], [4, 3, 2, 1]]
    records = score_records(folder, torch.tensor(rows), torch.tensor([0, 1, 2]), prefix, (1, 2))
    assert [r["id"] for r in records] == folder.keys
    assert [r["class"] for r in records] == NAMES[:3]
    assert [r["predicted"] for r in records] == [NAMES[0]] * 3
    assert [r["margin"] for r in records] == [1.0, 0.0, -2.0]
    keys = [f"{prefix}acc1", f"{prefix}acc2", f"{prefix}mean_per_class_recall", "tie_rate"]
    found = [[1.0, 1, 1, 0], [0, 1, 0, 1], [0, 0, 0, 0]]
    assert [r["values"] for r in records] == [dict(zip(keys, row)) for row in found]


def test_a_single_class_is_right_and_no_tie(tmp_path):
    root = write_color_set(tmp_path, [0, 0])
    (root / "classnames.txt").write_text("red")
    for record in score_records(open_folder(root), torch.zeros(2, 1), torch.tensor([0, 0])):
        assert record["values"] == {"acc1": 1.0, "mean_per_class_recall": 1.0, "tie_rate": 0.0}
        assert record["margin"] == 0.0


def test_infinite_scores_tie_and_stay_json(tmp_path):
    folder = open_folder(write_color_set(tmp_path, [0, 1]))
    scores = torch.tensor([[-INF, -INF, -INF, -INF], [-INF, 1.0, -INF, -INF]])
    records = score_records(folder, scores, torch.tensor([0, 1]))
    assert [r["values"]["acc1"] for r in records] == [0.0, 1.0]
    assert [r["values"]["tie_rate"] for r in records] == [1.0, 0.0]
    json.dumps(records, allow_nan=False)


def test_confusions_by_hand():
    pairs = [("a", "a"), ("a", "b"), ("a", "b"), ("b", "a"), ("c", "c")]
    details = confusion([{"class": a, "predicted": b} for a, b in pairs], ["a", "b", "c", "d"])
    assert details["confusions"] == [("a", "b", 2), ("b", "a", 1)]
    assert details["matrix"] == [[1, 2, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    recalls = {row["class"]: (row["n"], row["recall"]) for row in details["per_class"]}
    assert recalls == {"a": (3, 1 / 3), "b": (1, 0.0), "c": (1, 1.0)}


def test_facts_of_a_folder(tmp_path):
    root = write_color_set(tmp_path / "colors", [0, 1])
    facts = folder_facts(open_folder(root))
    (root / "zeroshot_classification_templates.txt").write_text("a {c} thing\nthe {c}\n")
    other = folder_facts(open_folder(root))
    assert facts.pop("templates_hash") != other.pop("templates_hash")
    assert facts == other == {"data": str(root), "split": "test", "classes": 4, "templates": 2}
    pairs = write_color_set(tmp_path / "pairs", [0, 1], ["red", "green"])
    assert folder_facts(open_folder(pairs)) == {"data": str(pairs), "split": "test"}
