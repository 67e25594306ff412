"""Calibration of a model whose probabilities are known."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipkit.contracts import Outputs
from clipkit.dist.group import World
from clipkit.errors import ConfigError, DataError
from clipkit.eval.calibration import CalibrationEval, cross_fit
from clipkit.eval.embed import Embedder
from clipkit.eval.intervals import wilson
from clipkit.eval.reliability import fit_scale, log_losses, log_probabilities
from tests.fixtures_encoder import COLORS, color_encoder, write_color_set


def embedder(scale=1.0, image_features=None):
    encoder = color_encoder(image_features)
    inner = encoder.forward

    def forward(batch):
        return Outputs(inner(batch).embeddings, torch.tensor(scale))

    encoder.forward = forward
    return Embedder(encoder, World())


@pytest.fixture(scope="module")
def result_and_scores(tmp_path_factory):
    """Of a model that takes a third of the images for another colour."""
    root = write_color_set(tmp_path_factory.mktemp("c"), [0, 1, 2, 3] * 15)

    def third(color):
        turned = color.roll(1, dims=1)
        blue = (color[:, 2] > color[:, 0] + 100)[:, None]
        return F.normalize(torch.where(blue, turned, color) - 120, dim=-1)

    evaluator = CalibrationEval(str(root), "colors", bins=5)
    return evaluator.run(embedder(20.0, third)), evaluator


def test_every_metric_has_an_interval_around_it(result_and_scores):
    result, _ = result_and_scores
    json.dumps([result.to_json(), result.records], allow_nan=False)
    names = {"acc1", "tie_rate", "ece_mass", "ece_width", "nll", "brier"}
    names |= {f"fitted_{k}" for k in ("ece_mass", "ece_width", "nll", "brier")}
    assert set(result.intervals) == names == set(result.metrics) - {"n", "nan_rate"}
    for name, (low, high) in result.intervals.items():
        assert low - 1e-9 <= result.metrics[name] <= high + 1e-9, name


def test_every_image_is_evaluated_once(result_and_scores):
    result, _ = result_and_scores
    assert result.metrics["n"] == 60 and [f["images"] for f in result.details["fit"]] == [30, 30]
    assert [r["id"] for r in result.records] == [f"{i:04d}" for i in range(60)]


def test_metrics_are_those_of_the_records(result_and_scores):
    result, _ = result_and_scores
    confidence = np.array([r["confidence"] for r in result.records])
    right = np.array([r["values"]["acc1"] for r in result.records])
    # blue is taken for red with certainty, all else is right: two levels of confidence at most
    assert right.mean() == np.mean([r["class"] != "blue" for r in result.records])
    table = F.normalize(torch.tensor([*COLORS.values()]).float() - 120, dim=1)
    sure = log_probabilities(table @ table.T, 20.0).exp().max(dim=1).values.numpy()
    assert np.isclose(confidence[:, None], sure[None], atol=1e-6).any(axis=1).all()
    expected = abs(float((right - confidence).sum())) / 60  # one bin holds them all
    assert result.metrics["ece_width"] == pytest.approx(expected, abs=1e-6)
    assert result.details["reliability"]["learned_width"][0]["n"] == 60


def test_fitting_helps_an_overconfident_model(result_and_scores):
    result, _ = result_and_scores
    assert result.details["logit_scale"] == 20
    assert all(f["logit_scale"] < 10 and f["fit"] == "least NLL" for f in result.details["fit"])
    assert result.metrics["fitted_nll"] < result.metrics["nll"]
    assert result.metrics["fitted_ece_mass"] < result.metrics["ece_mass"]


def test_each_half_has_the_scale_fitted_on_the_other(result_and_scores):
    result, _ = result_and_scores
    labels = torch.arange(60) % 4
    order = torch.from_numpy(np.random.default_rng(0).permutation(60))
    table = F.normalize(torch.tensor([*COLORS.values()]).float() - 120, dim=1)
    scores = (table @ table.T)[torch.tensor([0, 1, 0, 3])[labels]]  # blue looks red
    halves = order[:30], order[30:]
    scales = [fit_scale(scores[half], labels[half]) for half in halves]
    assert abs(scales[0] - scales[1]) > 0.1
    assert [f["logit_scale"] for f in result.details["fit"]] == pytest.approx(scales, rel=1e-4)
    for scale, test in zip(scales, halves[::-1]):
        losses = log_losses(log_probabilities(scores[test], scale), labels[test])
        found = [result.records[i]["values"]["fitted_nll"] for i in test]
        assert found == pytest.approx(losses.tolist(), rel=1e-4)


def test_a_half_that_is_all_right_keeps_the_learned_scale():
    labels = torch.arange(40) % 4
    first = np.random.default_rng(0).permutation(40)[:20]
    scores = torch.eye(4)[labels]
    scores[first[0]] = 1 - scores[first[0]]  # one wrong, in the first half
    scales, fits = cross_fit(scores, labels, 7.0, seed=0)
    assert [f["fit"] for f in fits] == ["least NLL", "kept: every image is right"]
    assert (scales[first] == 7).all() and (scales == 7).sum() == 20
    assert fits[1]["logit_scale"] == 7 != fits[0]["logit_scale"]


def test_where_all_is_right_the_fitted_numbers_are_the_learned_ones(tmp_path):
    root = write_color_set(tmp_path, [0, 1, 2, 3] * 5)
    result = CalibrationEval(str(root), "colors").run(embedder(3.0))
    assert {f["fit"] for f in result.details["fit"]} == {"kept: every image is right"}
    for name in ("ece_mass", "ece_width", "nll", "brier"):
        assert result.metrics[f"fitted_{name}"] == result.metrics[name] > 0
        assert result.intervals[f"fitted_{name}"] == result.intervals[name]


def test_a_class_in_second_place_is_wrong_and_no_tie(tmp_path):
    root = write_color_set(tmp_path, [0, 2] * 10)

    def purple(color):
        blue = (color[:, 2] > color[:, 0] + 100)[:, None]
        seen = torch.where(blue, torch.tensor([200.0, 10.0, 180.0]), color)
        return F.normalize(seen - 120, dim=-1)

    result = CalibrationEval(str(root), "colors").run(embedder(20.0, purple))
    assert result.metrics["tie_rate"] == 0
    for record in result.records:
        assert record["values"]["acc1"] == (record["class"] == "red")


def test_nll_is_at_the_learned_scale(tmp_path):
    root = write_color_set(tmp_path, [0, 1, 2, 3])
    result = CalibrationEval(str(root), "colors").run(embedder(3.0))
    table = F.normalize(torch.tensor([*COLORS.values()]).float() - 120, dim=1)
    rows = [r["class"] for r in result.records]
    labels = torch.tensor([list(COLORS).index(c) for c in rows])
    losses = log_losses(log_probabilities((table @ table.T)[labels], 3.0), labels)
    assert result.metrics["nll"] == pytest.approx(float(losses.mean()), abs=1e-5)


def test_a_constant_model_ties_and_is_wrong(tmp_path):
    root = write_color_set(tmp_path, [0, 1, 2, 3, 0, 1])
    encoder = color_encoder(*[lambda c: F.normalize(torch.ones_like(c), dim=-1)] * 2)
    result = CalibrationEval(str(root), "colors").run(Embedder(encoder, World()))
    assert result.metrics["acc1"] == 0 and result.metrics["tie_rate"] == 1
    assert result.metrics["ece_mass"] == pytest.approx(0.25)
    assert {f["fit"] for f in result.details["fit"]} == {
        "kept: no best scale within (0.01, 10000.0)"
    }


def test_images_that_all_agree_are_not_called_certain(tmp_path):
    root = write_color_set(tmp_path, [0, 0])
    result = CalibrationEval(str(root), "colors").run(embedder(20.0))
    assert result.metrics["n"] == 2
    for name in ("ece_mass", "ece_width", "fitted_ece_mass", "fitted_ece_width"):
        assert result.intervals[name] == wilson(result.metrics[name], 2)


def test_refusals(tmp_path):
    root = write_color_set(tmp_path / "a", [0, 1, 2])
    with pytest.raises(ConfigError, match="bins=0"):
        CalibrationEval(str(root), "colors", bins=0).check()
    with pytest.raises(ConfigError, match="bins=1001.*choose 1 to 1000 bins"):
        CalibrationEval(str(root), "colors", bins=1001).check()
    CalibrationEval(str(root), "colors", bins=1000).check()
    retrieval = write_color_set(tmp_path / "b", [0, 1], ["red", "green"])
    with pytest.raises(DataError, match="is of type retrieval, not classification"):
        CalibrationEval(str(retrieval), "colors").check()
