"""Detection against scikit-learn and counts by hand; a model that sees and one that does not."""

import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score, roc_curve

from clipkit.contracts import Outputs
from clipkit.dist.group import World
from clipkit.errors import ConfigError, DataError
from clipkit.eval.embed import Embedder
from clipkit.eval.out_of_distribution import (
    Detection,
    OutOfDistributionEval,
    confidence,
    open_beside,
)
from tests.fixtures_encoder import color_encoder, write_color_set
from tests.fixtures_shards import image_bytes, write_tar

LABELS = [0, 1, 2, 3] * 5


def color_sets(root):
    """A set with a train split, and beside it captioned images of colours that have no name."""
    folder = write_color_set(root / "known", LABELS)
    shutil.copytree(folder / "test", folder / "train")
    members = []
    for i in range(12):
        color = (120 + 10 * i, 250, 130 + 9 * i)
        members += [(f"{i:04d}.png", image_bytes(color)), (f"{i:04d}.txt", b"odd")]
    write_tar(root / "odd" / "test" / "0.tar", members)
    (root / "odd" / "dataset_type.txt").write_text("retrieval")
    return folder


def run(folder, encoder=None, **arguments):
    arguments = {"ood": "odd", **arguments}
    evaluator = OutOfDistributionEval(str(folder), "colors", **arguments)
    return evaluator.run(Embedder(encoder or color_encoder(), World()))


def test_auroc_and_fpr_equal_scikit_learns():
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(1, 1, 400), rng.normal(0, 1.5, 300)
    found = Detection(inside, outside)
    truth, scores = np.repeat([1, 0], [400, 300]), np.concatenate([inside, outside])
    assert found.auroc == pytest.approx(roc_auc_score(truth, scores))
    false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
    assert found.fpr95 == pytest.approx(false[np.argmax(true >= 0.95)])


def test_ties_count_as_wrong():
    found = Detection(np.array([1.0, 2.0]), np.array([1.0, 0.0]))
    assert found.auroc == (0.5 + 1) / 2 and found.ties.tolist() == [0.5, 0.0]
    assert found.fpr95 == 0.5  # at the threshold is accepted
    same = Detection(np.zeros(5), np.zeros(7))
    assert (same.auroc, same.fpr95, same.ties.mean()) == (0, 1, 1)


def test_the_threshold_keeps_95_percent():
    inside = np.arange(100.0)
    for outside, accepted in ((5.0, 1.0), (4.9, 0.0)):
        assert Detection(inside, np.array([outside])).fpr95 == accepted
    assert Detection(np.arange(10.0), np.array([-0.5, 0.0])).fpr95 == 0.5  # all ten are needed


def test_intervals_are_those_of_resampled_sets():
    rng = np.random.default_rng(1)
    inside, outside = rng.normal(1, 1, 150).round(1), rng.normal(0, 1, 90).round(1)
    found = Detection(inside, outside)
    draws = []
    for _ in range(400):
        again = Detection(rng.choice(inside, 150), rng.choice(outside, 90))
        draws.append((again.auroc, again.fpr95))
    slow = np.percentile(draws, [2.5, 97.5], axis=0)
    for k, (low, high) in enumerate(found.intervals(seed=0)):
        width = slow[1, k] - slow[0, k]
        assert high - low == pytest.approx(width, rel=0.25)
        assert (low + high) / 2 == pytest.approx(slow[:, k].mean(), abs=0.15 * width)
    assert found.intervals(seed=0) == found.intervals(seed=0)


def test_certainty_is_not_claimed_of_few_images():
    (low, high), (least, most) = Detection(np.ones(10), np.zeros(20)).intervals(seed=0)
    assert low < 0.8 and most > 0.1 and (high, least) == pytest.approx((1, 0))


def test_confidence_ranks_as_the_largest_softmax_and_does_not_saturate():
    cosines = torch.rand(50, 6, generator=torch.Generator().manual_seed(0))
    softmax = torch.softmax(20 * cosines.double(), dim=1).max(dim=1).values
    odds = confidence(cosines, 20.0)
    assert torch.equal(odds.argsort(), softmax.argsort())
    assert torch.allclose(odds.double(), (softmax / (1 - softmax)).log(), atol=1e-5)
    sure = confidence(torch.tensor([[1.0, -0.5], [1.0, -0.9]]), 100.0)
    assert sure[1] > sure[0] > 0


def test_a_model_that_sees_colors(tmp_path):
    result = run(color_sets(tmp_path))
    json.dumps([result.to_json(), result.records], allow_nan=False)
    for score in ("mcm", "max_softmax", "wdiscood"):
        assert result.metrics[f"{score}_auroc"] == 1 and result.metrics[f"{score}_fpr95"] == 0
    assert set(result.intervals) == set(result.metrics) - {"n", "nan_rate"}
    assert result.counts["mcm_auroc"] == 20 and result.counts["mcm_fpr95"] == 12
    assert [r["unit"] for r in result.records[20:]] == ["ood_image"] * 12
    assert result.provenance["num_discriminants"] == 3
    assert result.provenance["ood"] == str(tmp_path / "odd")
    assert sum(result.details["histograms"]["mcm"]["out"]) == 12


def test_a_constant_model_detects_nothing(tmp_path):
    one = [lambda c: F.normalize(torch.ones_like(c), dim=-1)] * 2
    metrics = run(color_sets(tmp_path), color_encoder(*one)).metrics
    for score in ("mcm", "max_softmax", "wdiscood"):
        assert metrics[f"{score}_auroc"] == 0 and metrics[f"{score}_fpr95"] == 1
        assert metrics[f"{score}_tie_rate"] == 1


def test_the_learned_scale_is_used(tmp_path):
    def wide(color):  # two directions: temperature changes which images are surest
        return F.normalize(color - 120 + 60, dim=-1)

    folder = color_sets(tmp_path)
    result = run(folder, color_encoder(wide))
    again = result.records[3]["scores"]
    assert again["mcm"] == pytest.approx(again["max_softmax"])  # this model's scale is 1
    encoder = color_encoder(wide)
    inner = encoder.forward

    def hot(batch):
        return Outputs(inner(batch).embeddings, torch.tensor(50.0))

    encoder.forward = hot
    scores = run(folder, encoder).records[3]["scores"]
    assert scores["mcm"] == pytest.approx(again["mcm"])
    assert abs(scores["max_softmax"]) > 5 * abs(again["max_softmax"])


def test_training_images_are_drawn(tmp_path):
    result = run(color_sets(tmp_path), max_train=15)
    assert result.provenance["train_images"] == 15


def test_the_other_set_is_found_by_path_or_beside_the_data(tmp_path, monkeypatch):
    folder = color_sets(tmp_path)
    assert len(open_beside(str(folder), "odd", "test")) == 12
    assert len(open_beside(str(folder), str(tmp_path / "odd"), "test")) == 12
    monkeypatch.chdir(folder)
    assert len(open_beside(".", "odd", "test")) == 12
    with pytest.raises(DataError, match="'nowhere': no such folder"):
        open_beside(str(folder), "nowhere", "test")


def test_refusals(tmp_path):
    folder = color_sets(tmp_path)
    with pytest.raises(ConfigError, match="name another one"):
        OutOfDistributionEval(str(folder), "x", ood=str(folder)).check()
    with pytest.raises(ConfigError, match="alpha and seed at least 0"):
        OutOfDistributionEval(str(folder), "x", ood="odd", alpha=-1.0).check()
    shutil.rmtree(folder / "train")
    with pytest.raises(DataError, match="train shards not found"):
        OutOfDistributionEval(str(folder), "x", ood="odd").check()
