"""Retrieval both ways: shared captions are shared positives, a constant model finds nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from clipkit.dist.group import World
from clipkit.errors import DataError
from clipkit.eval.base import column
from clipkit.eval.embed import Embedder
from clipkit.eval.paired import difference
from clipkit.eval.paired import match as match_columns
from clipkit.eval.retrieval import RetrievalEval, Way, examples, match, median_interval
from tests.fixtures_encoder import color_encoder, write_color_set


def run(root, model):
    return RetrievalEval(str(root), "colors").run(Embedder(model, World(), batch_size=2))


def test_a_model_that_knows_colors(tmp_path):
    captions = ["a red a", "the green b\na green c", "blue d", "white e"]
    result = run(write_color_set(tmp_path, [0, 1, 2, 3], captions), color_encoder())
    assert result.task == "zeroshot_retrieval"
    assert result.metrics["n"] == 4 and result.metrics["captions"] == 5
    for k in (1, 5, 10):
        assert result.metrics[f"text_retrieval_recall@{k}"] == 1.0
        assert result.metrics[f"image_retrieval_recall@{k}"] == 1.0
    assert result.metrics["mean_recall@1"] == 1.0
    # five captions of four images are four independent samples
    assert result.intervals["image_retrieval_recall@1"][0] == pytest.approx(0.5101, abs=1e-3)
    assert result.provenance == {"data": str(tmp_path), "split": "test", "seed": 0}


def test_equal_captions_are_one_target_and_all_its_images_count(tmp_path):
    captions = ["red", "red\nred", "green", "blue", "white"]
    result = run(write_color_set(tmp_path, [0, 0, 1, 2, 3], captions), color_encoder())
    assert result.metrics["captions"] == 4
    assert result.metrics["text_retrieval_recall@1"] == 1.0
    assert result.metrics["image_retrieval_recall@1"] == 1.0


def test_images_that_look_alike_with_captions_of_their_own_tie_and_fail(tmp_path):
    captions = ["red one", "red two", "green", "blue"]
    metrics = run(write_color_set(tmp_path, [0, 0, 1, 2], captions), color_encoder()).metrics
    assert metrics["text_retrieval_recall@1"] == 0.5 and metrics["image_retrieval_recall@1"] == 0.5
    assert metrics["text_retrieval_recall@5"] == 1.0
    assert metrics["text_tie_rate"] == 0.5 and metrics["image_tie_rate"] == 0.5


def test_a_constant_model_finds_nothing(tmp_path):
    captions = [f"{c} {i}" for i in range(6) for c in ("red", "green")]
    model = color_encoder(lambda c: torch.ones_like(c), lambda c: torch.ones_like(c))
    metrics = run(write_color_set(tmp_path, [0, 1] * 6, captions), model).metrics
    assert all(v == 0.0 for k, v in metrics.items() if "recall" in k)
    assert metrics["text_tie_rate"] == 1.0 and metrics["image_tie_rate"] == 1.0
    assert metrics["text_mean_rank"] == 12.0 and metrics["image_median_rank"] == 12.0


def test_directions_are_not_mixed_up(tmp_path):
    """One caption in three is right: images find theirs, two thirds of the captions do not."""
    captions = ["red\ngreen x\ngreen y", "green\nred x\nred y"]
    result = run(write_color_set(tmp_path, [0, 1], captions), color_encoder())
    metrics = result.metrics
    assert metrics["image_retrieval_recall@1"] == pytest.approx(2 / 6)
    assert metrics["text_retrieval_recall@1"] == 0.0  # a wrong caption of the same colour ties
    assert metrics["text_retrieval_recall@5"] == 1.0
    assert metrics["mean_recall@1"] == pytest.approx(1 / 6)
    assert metrics["text_mean_rank"] == 3.0 and metrics["text_median_rank"] == 3.0
    assert metrics["image_mean_rank"] == pytest.approx((2 * 1 + 4 * 2) / 6)
    assert metrics["image_median_rank"] == 2.0


def test_every_metric_has_an_interval_around_it_and_the_result_is_json(tmp_path):
    captions = ["red one\nblue z", "red two", "green", "blue", "white\nred"]
    result = run(write_color_set(tmp_path, [0, 0, 1, 2, 3], captions), color_encoder())
    for name, value in result.metrics.items():
        if name not in ("n", "captions", "nan_rate"):
            low, high = result.intervals[name]
            assert low <= value <= high, name
    text = json.dumps([result.to_json(), result.records], allow_nan=False)
    assert json.loads(text)[1] == result.records


def test_records_of_images_and_of_captions_drawn_with_their_image(tmp_path):
    captions = ["red\nred x", "green\nshared", "blue\nshared"]
    result = run(write_color_set(tmp_path, [0, 1, 2], captions), color_encoder())
    images = [r for r in result.records if r["unit"] == "image"]
    texts = [r for r in result.records if r["unit"] == "caption"]
    assert [r["id"] for r in images] == ["0000", "0001", "0002"]
    assert [r["id"] for r in texts] == ["red", "red x", "green", "shared", "blue"]
    owners = [r.get("cluster") for r in texts]
    assert owners == ["0000", "0000", "0001", None, "0002"]
    # "shared" names no colour and is read as red: it ties with the caption of the red image
    assert [r["rank"] for r in images] == [2, 1, 1]
    assert all("text_retrieval_recall@1" in r["values"] for r in images)
    assert all("image_retrieval_recall@1" in r["values"] for r in texts)
    for metric in ("tie_rate", "median_rank"):
        assert result.counts[f"text_{metric}"] == 3 and result.counts[f"image_{metric}"] == 5
    assert result.counts["mean_recall@1"] == 8


def test_mean_recall_is_paired_as_the_mean_of_both_ways(tmp_path):
    captions = ["red\nred x", "green\nshared", "blue\nshared"]
    result = run(write_color_set(tmp_path, [0, 1, 2], captions), color_encoder())
    recalls = [result.metrics[f"{way}_retrieval_recall@1"] for way in ("text", "image")]
    assert recalls == pytest.approx([2 / 3, 4 / 5])  # 3 images, 5 captions: no plain mean
    assert result.metrics["mean_recall@1"] == pytest.approx(sum(recalls) / 2)
    found = column(result.records, "mean_recall@1", result.macro["mean_recall@1"])
    assert found.mean == result.metrics["mean_recall@1"]
    assert found.clusters.tolist() == [0, 1, 2, 0, 0, 1, 3, 2]
    assert difference(match_columns(found, found)).n == 8


def test_match_numbers_captions_by_first_occurrence():
    matching = match(["a", "b", "c"], [["x", "y", "x"], ["y"], ["z", "x"]])
    assert matching.texts == ["x", "y", "z"]
    assert matching.pairs.tolist() == [[0, 0], [0, 1], [1, 1], [2, 2], [2, 0]]
    assert matching.owners == [None, None, "c"]


@pytest.mark.parametrize("n", [1, 6, 7, 41])
def test_median_interval_equals_medians_of_the_drawn_values(n):
    rng = np.random.default_rng(n)
    values, clusters = rng.random(n), np.arange(n) // 2
    count = int(clusters.max()) + 1
    rng, medians = np.random.default_rng(0), []
    for _ in range(1000):
        drawn = rng.integers(0, count, count)
        medians.append(np.median(np.concatenate([values[clusters == c] for c in drawn])))
    assert median_interval(values, clusters) == tuple(np.percentile(medians, [2.5, 97.5]))


def test_examples_are_the_worst_and_some_drawn_with_their_best_targets():
    n = 20
    features = torch.eye(n)
    ranks = torch.zeros(n, dtype=torch.int64)
    ranks[[4, 11, 2]] = torch.tensor([9, 12, 10])
    pairs = torch.arange(n)[:, None].expand(n, 2)
    keys, texts = [f"k{i}" for i in range(n)], [f"t{i}" for i in range(n)]
    found = examples(Way("id", keys, texts, features, features, pairs, ranks))
    assert [e["id"] for e in found[:3]] == ["k11", "k2", "k4"]
    assert [e["chosen"] for e in found] == ["worst"] * 3 + ["drawn"] * 3
    assert [e["rank"] for e in found] == [13, 11, 10, 1, 1, 1]
    assert len({e["id"] for e in found}) == 6
    assert found[1]["targets"][0] == {"caption": "t2", "score": 1.0, "right": True}
    assert [t["caption"] for t in found[1]["targets"][1:]] == ["t0", "t1", "t3", "t4"]
    assert not any(t["right"] for t in found[1]["targets"][1:])


def test_examples_of_both_ways_are_in_the_details(tmp_path):
    captions = ["red one\nred two", "green", "blue"]
    result = run(write_color_set(tmp_path, [0, 1, 2], captions), color_encoder())
    found = result.details["examples"]
    assert [("id" in e, "caption" in e) for e in found] == [(True, False)] * 3 + [(False, True)] * 4
    right = {
        e.get("id") or e["caption"]: [
            t.get("id") or t["caption"] for t in e["targets"] if t["right"]
        ]
        for e in found
    }
    assert right == {
        "0000": ["red one", "red two"],
        "0001": ["green"],
        "0002": ["blue"],
        "red one": ["0000"],
        "red two": ["0000"],
        "green": ["0001"],
        "blue": ["0002"],
    }


def test_another_kind_of_folder_is_refused(tmp_path):
    root = write_color_set(tmp_path, [0, 1])
    with pytest.raises(DataError, match="is of type classification, not retrieval"):
        RetrievalEval(str(root), "colors").check()
