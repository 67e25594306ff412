"""Votes against a slow reference and scikit-learn; ties in neighbours and votes."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier

from clipkit.config.parts import check_part
from clipkit.dist.group import World
from clipkit.errors import ConfigError, DataError
from clipkit.eval import knn
from clipkit.eval.embed import Embedder
from clipkit.eval.knn import KnnEval, count_votes
from tests.eval.test_linear_probe import NAMES, write_set
from tests.fixtures_encoder import color_encoder


def unit(n, dim, seed):
    return F.normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def slow_votes(images, voters, classes, num_classes, k, temperature):
    """Loops over all pairs; neighbours as near as the k-th vote too."""
    out = []
    for image in images.double():
        near = [float(torch.tensor(float(image @ v)).float()) for v in voters.double()]
        limit = sorted(near, reverse=True)[k - 1]
        row = [0.0] * num_classes
        for cosine, label in zip(near, classes.tolist()):
            if cosine >= limit:
                row[label] += math.exp((cosine - max(near)) / temperature)
        out.append(row)
    return torch.tensor(out)


@pytest.mark.parametrize("k", [1, 5, 40])
def test_votes_equal_the_slow_reference(k, monkeypatch):
    images, voters, classes = unit(13, 4, 0), unit(40, 4, 1), torch.arange(40) % 3
    voters[30:] = voters[:10]  # twins in other classes: ties at the k-th place
    expected = slow_votes(images, voters, classes, 3, k, 0.1)
    assert torch.allclose(
        count_votes(images, voters, classes, 3, k=k, temperature=0.1), expected, atol=1e-6
    )
    monkeypatch.setattr(knn, "_BLOCK", 40 * 3)
    assert torch.allclose(
        count_votes(images, voters, classes, 3, k=k, temperature=0.1), expected, atol=1e-6
    )


def test_predictions_equal_scikit_learn():
    images, voters, classes = unit(60, 5, 2), unit(200, 5, 3), torch.arange(200) % 7
    votes = count_votes(images, voters, classes, 7, k=9, temperature=0.07)
    peer = KNeighborsClassifier(
        9, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07)
    ).fit(voters.double(), classes)
    assert votes.argmax(1).tolist() == peer.predict(images.double()).tolist()
    shares = (votes / votes.sum(1, keepdim=True)).numpy()
    assert np.allclose(shares, peer.predict_proba(images.double()), atol=1e-6)


def test_the_order_of_training_images_does_not_count():
    images, voters, classes = unit(20, 3, 4), unit(60, 3, 5), torch.arange(60) % 4
    voters[30:] = voters[:30]
    order = torch.randperm(60, generator=torch.Generator().manual_seed(6))
    a = count_votes(images, voters, classes, 4, k=7, temperature=0.07)
    b = count_votes(images, voters[order], classes[order], 4, k=7, temperature=0.07)
    assert torch.equal(a, b)


def test_twins_in_two_classes_tie_exactly():
    voters = unit(12, 6, 7).repeat(2, 1)
    classes = torch.tensor([0] * 12 + [1] * 12)
    votes = count_votes(unit(50, 6, 8), voters, classes, 2, k=9, temperature=0.07)
    assert torch.equal(votes[:, 0], votes[:, 1]) and (votes > 0).all()


def test_twins_are_equally_near_wherever_they_stand(monkeypatch):
    monkeypatch.setattr(knn, "_BLOCK", 1)  # one row at a time: sums differ most by place
    twin = unit(1, 517, 11)
    voters = torch.cat([twin, unit(37, 517, 12), twin, unit(87, 517, 13), twin])
    classes = torch.full((127,), 3)
    classes[[0, 38, 126]] = torch.tensor([0, 1, 2])
    images = F.normalize(twin + 0.05 * unit(61, 517, 14), dim=1)
    votes = count_votes(images, voters, classes, 4, k=3, temperature=1e-4)
    assert torch.equal(votes[:, :3], torch.ones(61, 3))


def test_a_small_temperature_leaves_the_nearest_alone_and_finite():
    images, voters, classes = unit(20, 3, 9), unit(50, 3, 10), torch.arange(50) % 5
    votes = count_votes(images, voters, classes, 5, k=20, temperature=1e-5)
    nearest = classes[(images @ voters.T).argmax(1)]
    assert torch.isfinite(votes).all() and torch.equal(votes.argmax(1), nearest)


@pytest.fixture(scope="module")
def colors(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("knn") / "colors")


def run(root, image_features=None, **options):
    return KnnEval(str(root), "colors", **options).run(
        Embedder(color_encoder(image_features), World())
    )


def test_a_model_that_sees_colors(colors):
    result = run(colors)
    assert result.task == "knn" and result.metrics["n"] == 75
    assert 0.4 < result.metrics["knn_acc1"] < 1.0
    by_class = [np.mean([r["values"]["knn_acc1"] for r in result.records if r["class"] == c])
                for c in NAMES]  # fmt: skip
    assert result.metrics["knn_mean_per_class_recall"] == pytest.approx(np.mean(by_class))
    assert set(result.intervals) == {"knn_acc1", "knn_mean_per_class_recall", "tie_rate"}
    assert result.provenance["k"] == 20 and result.provenance["temperature"] == 0.07
    json.dumps([result.to_json(), result.records], allow_nan=False)


def test_a_constant_model_scores_nothing(colors):
    result = run(colors, lambda color: torch.ones_like(color) / math.sqrt(3))
    assert result.metrics["knn_acc1"] == 0.0 and result.metrics["tie_rate"] == 1.0


def test_impossible_settings_are_named(colors):
    for options, message in (
        ({"k": 0}, "k=0"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"k": 181}, "has only 180 train images"),
        ({"train_split": "test"}, "another split"),
    ):
        with pytest.raises(ConfigError, match=message):
            KnnEval(str(colors), "colors", **options).check()
    with pytest.raises(DataError, match="train_split"):
        KnnEval(str(colors), "colors", train_split="learn").check()


def test_yaml_schema():
    assert check_part("eval", {"kind": "knn", "k": 5}, "eval", extra={})["temperature"] == 0.07
