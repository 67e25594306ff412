"""Contrastive accuracy by closed forms, lines against scipy and scikit-learn, and a whole run."""

import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from sklearn.linear_model import HuberRegressor

from clipkit.data.wds_folder import open_folder
from clipkit.dist.group import World
from clipkit.errors import ConfigError, DataError
from clipkit.eval.accuracy_estimate import (
    AccuracyEstimateEval,
    contrastive_accuracy,
    fit_line,
    held_out,
    spearman,
)
from clipkit.eval.embed import Embedder
from clipkit.eval.shifts import augmented, make_shifts
from clipkit.eval.subset import Subset
from tests.fixtures_encoder import COLORS, color_encoder, write_color_set


def unit(n, d, seed):
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.mark.parametrize(("batch", "chance"), [(2, 1 / 3), (5, 1 / 9)])
def test_random_views_find_each_other_by_chance(batch, chance):
    found, tied = contrastive_accuracy(unit(6000, 32, 0), unit(6000, 32, 1), batch)
    assert float(found.mean()) == pytest.approx(chance, abs=0.02)
    assert float(tied.mean()) == 0


def test_views_that_coincide_are_found():
    views = unit(64, 8, 0)
    assert contrastive_accuracy(views, views, 16)[0].tolist() == [1.0] * 64


def test_ties_count_as_wrong():
    one = unit(1, 8, 0).expand(6, 8)
    found, tied = contrastive_accuracy(one, one, 3)
    assert found.tolist() == [0.0] * 6 and tied.tolist() == [1.0] * 6
    twins = unit(4, 8, 1)[torch.tensor([0, 0, 2, 3])]  # two images that look alike
    assert contrastive_accuracy(twins, twins, 4)[0].tolist() == [0, 0, 1, 1]


def test_by_hand_and_the_rest_is_dropped():
    first = torch.eye(4)
    second = torch.eye(4)[[0, 1, 3, 2]]  # the views of images 2 and 3 are swapped
    found, _ = contrastive_accuracy(first, second, 4)
    assert found.tolist() == [1, 1, 0, 0]
    assert contrastive_accuracy(first, second, 3)[0].shape == (3,)
    half = F.normalize(torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 0.3, 0], [0, 0, 1]]), dim=1)
    # view 0 of image 0 prefers view 0 of image 1's neighbour: its own view points elsewhere
    found, _ = contrastive_accuracy(half[[0, 2]], half[[2, 3]], 2)
    assert found.tolist() == [0, 0]


def test_line_equals_scipys():
    rng = np.random.default_rng(0)
    x = rng.uniform(0.2, 1, 12)
    y = 0.1 + 0.7 * x + rng.normal(0, 0.03, 12)
    line, peer = fit_line(x, y), stats.linregress(x, y)
    assert (line.slope, line.intercept) == pytest.approx((peer.slope, peer.intercept))
    # the textbook prediction interval
    error = np.sqrt(((y - peer.intercept - peer.slope * x) ** 2).sum() / 10)
    lever = 1 + 1 / 12 + (0.5 - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum()
    expected = stats.t.ppf(0.975, 10) * error * np.sqrt(lever)
    assert line.half_width(0.5, 0.0) == pytest.approx(expected)
    assert line.half_width(0.5, 0.1) == pytest.approx(np.hypot(expected, 0.1 * peer.slope))


def test_prediction_intervals_hold_95_percent():
    rng = np.random.default_rng(0)
    hits = []
    for _ in range(400):
        x = rng.uniform(0, 1, 9)
        y = 0.3 + 0.4 * x + rng.normal(0, 0.05, 9)
        at = float(rng.uniform(0, 1))
        line = fit_line(x[:8], y[:8])
        truth = 0.3 + 0.4 * at + rng.normal(0, 0.05)
        hits.append(abs(line.at(at) - truth) <= line.half_width(at, 0.0))
    assert 0.92 < np.mean(hits) < 0.98


def test_huber_withstands_an_outlier_and_equals_scikit_learns():
    rng = np.random.default_rng(0)
    x = np.linspace(0.2, 1, 15)
    y = 0.1 + 0.7 * x + rng.normal(0, 0.01, 15)
    y[14] = 0.0
    robust, plain = fit_line(x, y, "huber"), fit_line(x, y)
    assert robust.slope == pytest.approx(0.7, abs=0.05) and plain.slope < 0.5
    peer = HuberRegressor(alpha=0, epsilon=1.345, max_iter=1000).fit(x[:, None], y)
    assert robust.slope == pytest.approx(peer.coef_[0], abs=0.02)
    exact = fit_line(x, 0.2 + 0.5 * x, "huber")
    assert (exact.slope, exact.intercept) == pytest.approx((0.5, 0.2))


def test_lines_of_nothing():
    flat = fit_line(np.full(6, 0.5), np.linspace(0, 1, 6))
    assert flat.slope == 0 and flat.at(0.9) == 0.5 and np.isfinite(flat.half_width(0.9, 0.1))
    assert fit_line(np.array([0.0, 1, 2]), np.array([0.0, 1, 2])).at(7.0) == 1


def test_held_out_predictions_do_not_see_the_point():
    x, y = np.array([0.1, 0.2, 0.3, 0.4, 0.5]), np.array([0.1, 0.2, 0.3, 0.4, 0.9])
    found = held_out(x, y, "linear")
    assert found[4] == pytest.approx(0.5)  # the other four lie on y = x
    assert found[0] == pytest.approx(fit_line(x[1:], y[1:]).at(0.1))


def test_spearman():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=12), rng.normal(size=12)
    value, (low, high) = spearman(x, y)
    assert value == pytest.approx(stats.spearmanr(x, y).statistic) and low < value < high
    assert spearman(x, x)[0] == 1 and spearman(x, x)[1][1] == 1
    assert spearman(np.ones(5), x[:5]) == (0.0, (-1.0, 1.0))


def run(root, encoder=None, **arguments):
    arguments = {"batch": 4, "num_shifts": 10, **arguments}
    evaluator = AccuracyEstimateEval(str(root), "colors", **arguments)
    return evaluator.run(Embedder(encoder or color_encoder(), World()))


def test_a_whole_run(tmp_path):
    root = write_color_set(tmp_path, [0, 1, 2, 3] * 6 + [0])
    result = run(root)
    json.dumps([result.to_json(), result.records], allow_nan=False)
    assert result.metrics["n"] == 24 == result.provenance["target_images"]
    assert result.metrics["accuracy"] == 1
    assert set(result.intervals) == set(result.metrics) - {"n", "nan_rate"}
    for name, (low, high) in result.intervals.items():
        assert low - 1e-9 <= result.metrics[name] <= high + 1e-9, name
    assert result.metrics["estimate_error"] == pytest.approx(
        result.metrics["predicted_accuracy"] - 1
    )
    for name, n in result.counts.items():
        assert n == (10 if name.startswith("shifts_") else 24), name
    shifts = result.details["shifts"]
    assert len(shifts) == 10 and {len(s) for s in shifts} == {4}
    squared = [(s["predicted"] - s["accuracy"]) ** 2 for s in shifts]
    assert result.metrics["shifts_rmse"] == pytest.approx(np.mean(squared) ** 0.5)
    darkness = [s for s in shifts if s["shift"].startswith("darkness")]
    rotation = [s for s in shifts if s["shift"].startswith("rotation")]
    assert rotation[0]["accuracy"] == 1 and len(darkness) == 1


def test_shifts_are_scored_on_shifted_images_and_on_two_views(tmp_path):
    root = write_color_set(tmp_path, [0, 1, 2, 3] * 4)
    result = run(root, seed=7)
    source = Subset.draw(open_folder(root), 16, 7)
    images, model = list(source.images(0, 16)), Embedder(color_encoder(), World())
    classes = F.normalize(torch.tensor([*COLORS.values()]).float() - 120, dim=1)
    labels = torch.tensor(source.labels())
    for shift, found in zip(make_shifts(10, 7), result.details["shifts"]):
        pixels = [np.asarray(shift.change(image, i), float) for i, image in enumerate(images)]
        colors = torch.tensor(np.array([p.mean((0, 1)) for p in pixels])).float()
        scores = F.normalize(colors - 120, dim=1) @ classes.T
        right = (scores.argmax(dim=1) == labels).double()
        assert found["accuracy"] == pytest.approx(float(right.mean()), abs=1e-9), shift.name
        views = [model.images(source, augmented(which, 7, shift)) for which in (0, 1)]
        expected = float(contrastive_accuracy(*views, 4)[0].mean())
        assert found["contrastive_accuracy"] == pytest.approx(expected)
    assert min(s["accuracy"] for s in result.details["shifts"]) < 0.8  # darkness at 0.95 does harm


def test_the_estimate_is_compared_with_the_share_that_is_right(tmp_path):
    root = write_color_set(tmp_path / "a", [0, 1, 2, 3] * 4)
    other = write_color_set(tmp_path / "b", [0, 1, 2, 3] * 4)
    (tmp_path / "b" / "classnames.txt").write_text("red\ngreen\nwhite\nblue")
    (tmp_path / "a" / "classnames.txt").write_text("red\ngreen\nwhite\nblue")
    metrics = run(root, target=str(other)).metrics
    assert metrics["accuracy"] == 0.5  # two of the four names are swapped
    assert metrics["estimate_error"] == pytest.approx(metrics["predicted_accuracy"] - 0.5)


def test_the_same_seed_gives_the_same_estimate(tmp_path):
    root = write_color_set(tmp_path, [0, 1, 2, 3] * 4)
    first = run(root, num_shifts=5)
    assert first.metrics == run(root, num_shifts=5).metrics
    assert run(root, num_shifts=5, seed=1).details["shifts"] != first.details["shifts"]


def test_labels_of_the_target_are_not_needed_and_not_used(tmp_path):
    labelled = write_color_set(tmp_path / "labelled", [0, 1, 2, 3] * 4)
    captioned = write_color_set(tmp_path / "plain", [3, 2, 1, 0] * 3, ["a thing"] * 12)
    wrong = write_color_set(tmp_path / "wrong", [3, 2, 1, 0] * 3)
    shutil.rmtree(wrong / "test")
    shutil.copytree(captioned / "test", wrong / "test")
    unknown = run(labelled, target="plain")
    known = run(labelled, target=str(wrong), regression="huber")
    assert "accuracy" not in unknown.metrics and "estimate_error" not in unknown.metrics
    assert known.metrics["accuracy"] == 1
    assert known.metrics["contrastive_accuracy"] == unknown.metrics["contrastive_accuracy"]
    assert unknown.provenance["target"] == str(tmp_path / "plain")
    linear = run(labelled, target=str(wrong))
    assert linear.metrics["predicted_accuracy"] == unknown.metrics["predicted_accuracy"]


def test_other_class_names_are_no_labels(tmp_path):
    labelled = write_color_set(tmp_path / "labelled", [0, 1, 2, 3] * 2)
    other = write_color_set(tmp_path / "other", [0, 1, 2, 3] * 2)
    (other / "classnames.txt").write_text("blue\ngreen\nred\nwhite")
    assert "accuracy" not in run(labelled, target="other").metrics


def test_refusals(tmp_path):
    root = write_color_set(tmp_path, [0, 1, 2, 3])
    with pytest.raises(ConfigError, match="num_shifts is at least 5"):
        AccuracyEstimateEval(str(root), "x", num_shifts=4).check()
    with pytest.raises(DataError, match="4 images do not fill a batch of 64"):
        AccuracyEstimateEval(str(root), "x").check()
    with pytest.raises(DataError, match="'gone': no such folder"):
        AccuracyEstimateEval(str(root), "x", batch=2, target="gone").check()
