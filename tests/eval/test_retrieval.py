"""Retrieval both ways: shared captions are shared positives, a constant model finds nothing."""

import pytest
import torch

from clipkit.dist.group import World
from clipkit.eval.retrieval import RetrievalEval
from tests.fixtures_encoder import color_encoder, write_color_set


def run(root, model):
    return RetrievalEval(str(root), "colors", batch_size=2).run(model, World())


def test_a_model_that_knows_colors(tmp_path):
    captions = ["a red a", "the green b\na green c", "blue d", "white e"]
    result = run(write_color_set(tmp_path, [0, 1, 2, 3], captions), color_encoder())
    assert result.task == "zeroshot_retrieval"
    assert result.metrics["n"] == 4 and result.metrics["captions"] == 5
    for k in (1, 5, 10):
        assert result.metrics[f"text_retrieval_recall@{k}"] == 1.0
        assert result.metrics[f"image_retrieval_recall@{k}"] == 1.0
    assert result.intervals["image_retrieval_recall@1"][0] == pytest.approx(0.5655, abs=1e-3)


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


def test_a_constant_model_finds_nothing(tmp_path):
    captions = [f"{c} {i}" for i in range(6) for c in ("red", "green")]
    model = color_encoder(lambda c: torch.ones_like(c), lambda c: torch.ones_like(c))
    metrics = run(write_color_set(tmp_path, [0, 1] * 6, captions), model).metrics
    assert all(v == 0.0 for k, v in metrics.items() if "recall" in k)


def test_directions_are_not_mixed_up(tmp_path):
    """One caption in three is right: images find theirs, two thirds of the captions do not."""
    captions = ["red\ngreen x\ngreen y", "green\nred x\nred y"]
    metrics = run(write_color_set(tmp_path, [0, 1], captions), color_encoder()).metrics
    assert metrics["image_retrieval_recall@1"] == pytest.approx(2 / 6)
    assert metrics["text_retrieval_recall@1"] == 0.0  # a wrong caption of the same colour ties
    assert metrics["text_retrieval_recall@5"] == 1.0
