"""Average precision by hand and against scikit-learn; a constant model scores the prevalence."""

import io
import json
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    average_precision_score,
    label_ranking_average_precision_score,
    roc_auc_score,
)

from clipkit.config.parts import check_part
from clipkit.data.wds_folder import open_folder
from clipkit.data.wds_write import write_folder
from clipkit.dist.group import World
from clipkit.errors import DataError
from clipkit.eval.embed import Embedder
from clipkit.eval.intervals import wilson
from clipkit.eval.multilabel import (
    MultilabelEval,
    aurocs,
    average_precisions,
    label_ranking,
    macro_interval,
)
from clipkit.eval.zero_shot import class_features, exact_scores
from tests.fixtures_encoder import COLORS, color_encoder
from tests.fixtures_shards import image_bytes

NAMES = list(COLORS)


def write_set(root, truth, colors):
    samples = []
    for row, color in zip(truth, colors):
        out = io.BytesIO()
        np.save(out, np.array(row, dtype=np.int64))
        samples.append({"png": image_bytes(tuple(int(v) for v in color)), "npy": out.getvalue()})
    write_folder(
        root, "test", samples, classnames=NAMES, templates=["a {c}", "the {c}"], kind="multilabel"
    )
    return root


def random_set(root, n=40, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.random((n, 4)) < [0.5, 0.3, 0.2, 0.0]
    truth[3] = False
    tones = np.array(list(COLORS.values()))
    colors = (truth @ tones + rng.normal(120, 90, (n, 3))).clip(0, 255)
    colors[20:30] = colors[:10]  # equal images tie
    return write_set(root, truth, colors), truth


def run(root, **towers):
    return MultilabelEval(str(root), "tags").run(Embedder(color_encoder(**towers), World()))


def test_metrics_equal_scikit_learn(tmp_path):
    root, truth = random_set(tmp_path / "tags")
    result = run(root)
    model, folder = Embedder(color_encoder(), World()), open_folder(root)
    classes = class_features(model, folder.classnames, folder.templates)
    scores = exact_scores(model.images(folder), classes).numpy()
    there = truth.any(axis=0)
    assert there.tolist() == [True, True, True, False]
    expected = average_precision_score(truth[:, there], scores[:, there], average="macro")
    area = roc_auc_score(truth[:, there], scores[:, there], average="macro")
    labelled = truth.any(axis=1)
    ranking = label_ranking_average_precision_score(truth[labelled], scores[labelled])
    assert result.metrics["mean_average_precision"] == pytest.approx(expected, abs=1e-12)
    assert result.metrics["mean_auroc"] == pytest.approx(area, abs=1e-12)
    assert result.metrics["label_ranking_average_precision"] == pytest.approx(ranking, abs=1e-12)
    assert result.task == "zeroshot_classification" and result.metrics["n"] == 40
    for name in ("mean_average_precision", "mean_auroc", "label_ranking_average_precision"):
        low, high = result.intervals[name]
        assert low < result.metrics[name] < high
    low, high = result.intervals["mean_average_precision"]
    assert (low + high) / 2 == pytest.approx(expected)  # a jackknife has the metric in its middle
    rows = result.details["per_class"]
    assert [row["n"] for row in rows] == truth.sum(axis=0).tolist()
    assert rows[3]["average_precision"] is None and rows[3]["auroc"] is None
    assert result.provenance["classes_with_images"] == 3 and result.provenance["templates"] == 2
    json.dumps([result.to_json(), result.records], allow_nan=False)


def test_average_precision_by_hand():
    truth = np.array([[1, 0, 1, 0, 0]], dtype=bool).T
    scores = np.array([[0.9, 0.8, 0.7, 0.6, 0.5]]).T
    assert average_precisions(truth, scores) == {0: pytest.approx((1 / 1 + 2 / 3) / 2)}
    assert aurocs(truth, scores) == {0: pytest.approx(5 / 6)}
    tied = np.array([[0.9, 0.7, 0.7, 0.7, 0.5]]).T
    assert average_precisions(truth, tied) == {0: pytest.approx((1 / 1 + 2 / 4) / 2)}
    assert aurocs(truth, tied) == {0: pytest.approx((3 + 1 + 0.5 + 0.5) / 6)}


def test_classes_without_the_needed_images_are_left_out():
    truth = np.array([[1, 0, 1], [1, 0, 0]], dtype=bool)
    scores = np.array([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]])
    assert average_precisions(truth, scores) == {0: 1.0, 2: 1.0}
    assert aurocs(truth, scores) == {2: 1.0}


def test_a_constant_model_scores_the_prevalence(tmp_path):
    root, truth = random_set(tmp_path / "tags")

    def blind(color):
        return torch.ones_like(color) / math.sqrt(3)

    result = run(root, image_features=blind, text_features=blind)
    prevalence = truth[:, :3].mean(axis=0)
    assert result.metrics["mean_average_precision"] == pytest.approx(prevalence.mean())
    assert result.metrics["mean_auroc"] == 0.5
    assert [row["average_precision"] for row in result.details["per_class"][:3]] == (
        pytest.approx(prevalence)
    )
    labelled = truth.any(axis=1)
    share = truth[labelled].mean(axis=1)
    assert result.metrics["label_ranking_average_precision"] == pytest.approx(share.mean())
    assert result.metrics["tie_rate"] == labelled.mean()


def test_a_perfect_model_is_not_called_certain(tmp_path):
    truth = np.eye(4, dtype=bool)[[0, 1, 2, 3, 0, 1]]
    result = run(write_set(tmp_path / "tags", truth, [list(COLORS.values())[i] for i in
                                                      (0, 1, 2, 3, 0, 1)]))  # fmt: skip
    assert result.metrics["mean_average_precision"] == 1.0
    assert result.intervals["mean_average_precision"] == pytest.approx(wilson(1.0, 6))


def test_label_ranking_against_scikit_learn():
    rng = np.random.default_rng(1)
    truth = rng.random((50, 6)) < 0.4
    truth[:, 2] |= ~truth.any(axis=1)
    scores = rng.integers(0, 4, (50, 6)) / 4  # many ties
    found = label_ranking(truth, scores)
    for i in range(50):
        peer = label_ranking_average_precision_score(truth[i : i + 1], scores[i : i + 1])
        assert found[i] == pytest.approx(peer)
    assert math.isnan(label_ranking(np.zeros((1, 3), bool), np.zeros((1, 3)))[0])


def test_the_interval_covers_the_mean_average_precision_of_many_images():
    def draw(n, seed):
        rng = np.random.default_rng(seed)
        truth = rng.random((n, 3)) < [0.3, 0.2, 0.1]
        return truth, rng.normal(size=(n, 3)) + 1.2 * truth

    target = np.mean(list(average_precisions(*draw(100_000, 0)).values()))
    hits = 0
    for seed in range(1, 21):
        low, high = macro_interval(average_precisions, *draw(200, seed))
        hits += low <= target <= high
    assert hits >= 17


def test_other_sets_are_refused(tmp_path):
    write_set(tmp_path / "empty", np.zeros((4, 4)), [(0, 0, 0)] * 4)
    with pytest.raises(DataError, match="no test image has any label"):
        run(tmp_path / "empty")
    (tmp_path / "empty" / "dataset_type.txt").write_text("classification\n")
    with pytest.raises(DataError, match="is of type classification, not multilabel"):
        MultilabelEval(str(tmp_path / "empty"), "tags").check()


def test_yaml_schema():
    assert check_part("eval", {"kind": "multilabel"}, "eval", extra={})["split"] == "test"
