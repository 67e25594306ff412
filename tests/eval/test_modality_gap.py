"""The gap of a model that is known: colours and their names at the same place, or moved apart."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipkit.dist.group import World
from clipkit.errors import ConfigError, DataError
from clipkit.eval import modality_gap
from clipkit.eval.base import column
from clipkit.eval.embed import Embedder
from clipkit.eval.intervals import wilson
from clipkit.eval.modality_gap import Links, ModalityGapEval, draw_images, make_pairs, project
from tests.fixtures_encoder import COLORS, color_encoder, write_color_set

LABELS = [0, 0, 0, 1, 1, 2, 3, 3]
NAMES = list(COLORS)


def run(root, encoder=None, **arguments):
    evaluator = ModalityGapEval(str(root), "colors", **arguments)
    return evaluator.run(Embedder(encoder or color_encoder(), World()))


def everywhere(result):
    json.dumps([result.to_json(), result.records], allow_nan=False)
    plain = set(result.metrics) - {"n", "nan_rate"}
    assert plain == set(result.intervals)
    for name in plain:
        low, high = result.intervals[name]
        assert low <= result.metrics[name] + 1e-9 and result.metrics[name] <= high + 1e-9, name
        assert np.isfinite([low, high]).all()


def test_a_model_without_a_gap(tmp_path):
    result = run(write_color_set(tmp_path, LABELS))
    everywhere(result)
    metrics = result.metrics
    assert metrics["n"] == 8
    for name in ("centroid_gap", "rmg", "alignment", "instance_distance", "tie_rate"):
        assert metrics[name] == pytest.approx(0, abs=1e-3), name
    assert metrics["mean_matched_cosine"] == pytest.approx(1, abs=1e-6)
    assert metrics["matched_auroc"] == 1 and result.intervals["matched_auroc"][0] < 0.8
    assert metrics["linear_separability"] == 0.5
    # 4 colours in 3 dimensions, once each, by hand
    x = F.normalize(torch.tensor([*COLORS.values()]).double() - 120, dim=1)
    cosines = x @ x.T
    kernel = torch.exp(-4 * (1 - cosines[~torch.eye(4, dtype=torch.bool)]))
    assert metrics["uniformity_text"] == pytest.approx(float(kernel.mean().log()), abs=1e-5)
    owners = torch.tensor(LABELS)
    off = cosines[owners][owners[:, None] != torch.arange(4)]
    assert metrics["mean_mismatched_cosine"] == pytest.approx(float(off.mean()), abs=1e-6)
    assert result.provenance["template"] == "a {c} thing"
    assert (result.provenance["images"], result.provenance["texts"]) == (8, 4)


def test_a_model_with_a_gap(tmp_path):
    def far(color):
        return -F.normalize(torch.ones_like(color) + 0.1 * F.normalize(color - 120, dim=-1), dim=-1)

    def near(color):
        return -far(color)

    result = run(write_color_set(tmp_path, LABELS * 4), color_encoder(near, far))
    everywhere(result)
    assert result.metrics["centroid_gap"] > 1.9 and result.metrics["rmg"] > 0.9
    assert result.metrics["linear_separability"] == 1
    assert result.metrics["alignment"] == pytest.approx(
        2 - 2 * result.metrics["mean_matched_cosine"], abs=1e-6
    )
    assert result.metrics["uniformity_cross"] < -7


@pytest.mark.parametrize("wrong", [0, 1, 40])
def test_groups_that_share_texts_bound_how_sure_separability_is(tmp_path, monkeypatch, wrong):
    def found(pairs, seed):
        tested = np.flatnonzero(np.isin(pairs.of_text, pairs.of_text.unique()[:2]))
        return tested, np.repeat([0.5, 1.0], [wrong, len(tested) - wrong])

    monkeypatch.setattr(modality_gap, "separability", found)
    result = run(write_color_set(tmp_path, [0, 1] * 40 + [2, 3]))
    value = 1 - wrong / 160
    assert result.metrics["linear_separability"] == pytest.approx(value)
    assert result.intervals["linear_separability"] == pytest.approx(wilson(value, 2))


def test_a_constant_model_has_no_gap_and_wins_nothing(tmp_path):
    def one(color):
        return F.normalize(torch.ones_like(color), dim=-1)

    result = run(write_color_set(tmp_path, LABELS), color_encoder(one, one))
    everywhere(result)
    assert result.metrics["matched_auroc"] == 0 and result.metrics["tie_rate"] == 1
    assert result.metrics["rmg"] == 0 and result.metrics["effective_rank_image"] == 0


def test_captions_are_pairs_and_their_image_is_the_cluster(tmp_path):
    captions = ["red one\nwhite", "red two", "green\ngreen", "blue", "white\nblue thing"]
    result = run(write_color_set(tmp_path, [0, 0, 1, 2, 3], captions))
    everywhere(result)
    assert result.metrics["n"] == 7  # a caption said twice is one
    assert [r["cluster"] for r in result.records][:3] == ["0000", "0000", "0001"]
    assert len({r["id"] for r in result.records}) == 7
    found = column(result.records, "mean_matched_cosine")
    assert found.clusters is not None and found.clusters.max() == 4
    sides = {"uniformity_image": 5, "effective_rank_image": 5, "centroid_gap": 7, "rmg": 7}
    sides |= {"uniformity_text": 6, "effective_rank_text": 6}
    sides |= {"uniformity_cross": 23, "mean_mismatched_cosine": 23}  # 5 x 6, less the 7 pairs
    assert {**result.counts, **sides} == result.counts


def test_details_hold_points_and_histograms(tmp_path):
    result = run(write_color_set(tmp_path, LABELS))
    pca, cosines = result.details["pca"], result.details["cosines"]
    assert np.shape(pca["image"]) == (8, 2) and np.shape(pca["text"]) == (4, 2)
    assert len(cosines["edges"]) == len(cosines["matched"]) + 1
    assert sum(cosines["matched"]) == 8 and sum(cosines["mismatched"]) == 24


def test_projection_keeps_distances_of_planar_points():
    plane = torch.zeros(9, 5)
    plane[:, 1:3] = torch.randn(9, 2, generator=torch.Generator().manual_seed(0))
    found = project(plane[:5], plane[5:], seed=0)
    points = torch.tensor(found["image"] + found["text"])
    assert torch.allclose(torch.cdist(points, points), torch.cdist(plane, plane), atol=1e-4)
    assert sum(found["explained"]) == pytest.approx(1)
    many = project(torch.randn(900, 3), torch.randn(3, 3), seed=0)
    assert len(many["image"]) == 400


def test_whole_images_are_drawn_up_to_the_cap():
    counts = [5] * 100
    kept = draw_images(counts, 50, seed=1)
    assert len(kept) == 10 and kept == sorted(kept) and kept == draw_images(counts, 50, seed=1)
    assert kept != draw_images(counts, 50, seed=2)
    assert draw_images(counts, 500, seed=1) == list(range(100))


def test_texts_of_images_left_out_are_left_out():
    images, texts = torch.eye(4), torch.arange(20.0).view(5, 4)
    pairs = make_pairs(images, texts, Links([*"abcde"], [[0], [1, 4], [2], [3, 4]], [1, 3]))
    assert pairs.of_image.tolist() == [0, 0, 1, 1] and pairs.of_text.tolist() == [0, 2, 1, 2]
    assert torch.equal(pairs.images, images[[1, 3]]) and torch.equal(pairs.texts, texts[[1, 3, 4]])


def test_the_cap_is_said(tmp_path):
    result = run(write_color_set(tmp_path, LABELS * 4), max_pairs=12, seed=3)
    everywhere(result)
    assert result.metrics["n"] == 12
    assert result.provenance["max_pairs"] == 12 and result.provenance["images_in_set"] == 32


def test_refusals(tmp_path):
    root = write_color_set(tmp_path / "one", [1, 1, 1])
    same = write_color_set(tmp_path / "same", [1, 2], ["a thing", "a thing"])
    alone = write_color_set(tmp_path / "alone", [1])
    (alone / "test" / "0.tar").unlink()  # the shard that one image leaves empty
    for place, count in ((root, 3), (alone, 1), (same, 2)):
        with pytest.raises(DataError, match=f"all {count} images share.*no mismatched pair"):
            ModalityGapEval(str(place), "colors").check()
    with pytest.raises(ConfigError, match="max_pairs=3"):
        run(root, max_pairs=3)
    (root / "dataset_type.txt").write_text("multilabel")
    with pytest.raises(DataError, match="is of type multilabel"):
        run(root)
