"""Descriptors: the formula's properties by hand, AUROC and acc1 end to end, wrong files named."""

import io
import json
import math
import re
import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score

from clipkit.dist.group import World
from clipkit.errors import ConfigError, DataError
from clipkit.eval.description import (
    DescriptionEval,
    auroc_intervals,
    class_probabilities,
    read_descriptions,
)
from clipkit.eval.embed import Embedder
from tests.fixtures_encoder import COLORS, color_encoder, write_color_set
from tests.fixtures_shards import image_bytes, write_tar

CLASSES = ["edema", "fracture", "mass"]
DESCRIPTORS = {
    "edema": ["haze", "fluid lines", "wide hila"],
    "fracture": ["a break"],
    "mass": ["a round spot", "a shadow"],
}
D = 8


class TableModel:
    """Image features by row of a matrix, text features from the text's letters."""

    def __init__(self, images, same=False):
        self.rows, self.same, self.asked = F.normalize(images, dim=1), same, []

    def images(self, folder):
        assert len(folder) == len(self.rows)
        return self.rows

    def texts(self, texts):
        self.asked += texts
        return torch.stack([text_feature("" if self.same else t) for t in texts])


def text_feature(text):
    rng = np.random.default_rng(zlib.crc32(text.encode()))
    return F.normalize(torch.from_numpy(rng.normal(size=D)).float(), dim=0)


def write(root, truth=None, labels=None, descriptions=DESCRIPTORS):
    members = []
    for i in range(len(truth if truth is not None else labels)):
        members.append((f"{i:03d}.png", image_bytes()))
        if truth is None:
            members.append((f"{i:03d}.cls", str(labels[i]).encode()))
        else:
            out = io.BytesIO()
            np.save(out, truth[i].astype(np.int64))
            members.append((f"{i:03d}.npy", out.getvalue()))
    write_tar(root / "test" / "0.tar", members)
    (root / "classnames.txt").write_text("\n".join(CLASSES))
    (root / "zeroshot_classification_templates.txt").write_text("{c}\n")
    (root / "dataset_type.txt").write_text("classification" if truth is None else "multilabel")
    if descriptions is not None:
        other_order = dict(reversed(descriptions.items()))
        (root / "descriptions.json").write_text(json.dumps(other_order))
    return root


def slow_probability(image, name, temperature, positive=True):
    """exp(mean log p) of one image and class, one descriptor at a time."""
    logs = []
    for o in DESCRIPTORS[name]:
        yes = float(image.double() @ text_feature(f"There are {o} indicating {name}").double())
        no = float(image.double() @ text_feature(f"There are no {o} indicating {name}").double())
        two = np.exp(np.array([yes, no]) / temperature)
        logs.append(math.log((two / two.sum())[0 if positive else 1]))
    return math.exp(sum(logs) / len(logs))


@pytest.fixture
def images():
    return F.normalize(torch.randn(60, D, generator=torch.Generator().manual_seed(0)), dim=1)


@pytest.fixture
def truth():
    found = np.random.default_rng(0).random((60, 3)) < [0.5, 0.3, 0.1]
    found[0] = True
    return found


def run(root, model, **options):
    return DescriptionEval(str(root), "xray", **options).run(model)


def test_one_descriptor_is_the_contrastive_pair():
    positive, negative = torch.rand(20, 4), torch.rand(20, 4)
    found = class_probabilities(positive, negative, [1, 1, 1, 1], 0.5)
    pair = torch.stack([positive, negative]).double().div(0.5).softmax(dim=0)
    assert torch.allclose(found.log_positive.exp().double(), pair[0], atol=1e-6)
    assert torch.allclose(found.log_negative.exp().double(), pair[1], atol=1e-6)
    assert torch.allclose(found.descriptor, pair[0], atol=1e-12)


def test_equal_cosines_give_a_half():
    same = torch.rand(5, 6)
    found = class_probabilities(same, same, [1, 5], 0.5)
    assert torch.equal(found.descriptor, torch.full((5, 6), 0.5).double())
    assert torch.equal(found.log_positive, torch.full((5, 2), math.log(0.5)))
    assert torch.equal(found.log_positive, found.log_negative)


def test_class_is_the_geometric_mean_and_the_two_need_not_add_up_to_one():
    positive = torch.tensor([[0.9, 0.1, 0.4]])
    found = class_probabilities(positive, torch.zeros(1, 3), [2, 1], 0.5)
    p = torch.sigmoid(positive / 0.5)[0].tolist()
    assert found.log_positive.exp().tolist()[0] == pytest.approx([math.sqrt(p[0] * p[1]), p[2]])
    other = [math.sqrt((1 - p[0]) * (1 - p[1])), 1 - p[2]]
    assert found.log_negative.exp().tolist()[0] == pytest.approx(other)
    assert p[0] * p[1] ** 0.5 + other[0] != pytest.approx(1)


def test_monotone_in_each_descriptor():
    base = torch.rand(7, 5)
    low = class_probabilities(base, base.flip(0), [2, 3], 0.5).log_positive
    for o in range(5):
        more = base.clone()
        more[:, o] += 0.05
        high = class_probabilities(more, base.flip(0), [2, 3], 0.5).log_positive
        own = 0 if o < 2 else 1
        assert bool((high[:, own] > low[:, own]).all())
        assert torch.equal(high[:, 1 - own], low[:, 1 - own])


def test_a_tiny_temperature_does_not_lose_the_order():
    positive = torch.tensor([[-0.9], [-0.8], [0.7], [0.8]])
    found = class_probabilities(positive, torch.zeros(4, 1), [1], 1e-3).log_positive[:, 0]
    assert bool((found[:2].diff() > 0).all()) and bool(torch.isfinite(found).all())


def test_multilabel_equals_scikit_learn_on_slow_probabilities(tmp_path, images, truth):
    model = TableModel(images)
    result = run(write(tmp_path / "set", truth), model)
    yes, no = (
        np.array([[slow_probability(i, c, 0.5, side) for c in CLASSES] for i in images])
        for side in (True, False)
    )
    expected = [roc_auc_score(truth[:, c], yes[:, c]) for c in range(3)]
    assert result.metrics["mean_auroc"] == pytest.approx(np.mean(expected), abs=1e-9)
    per_class = result.details["per_class"]
    assert [row["auroc"] for row in per_class] == pytest.approx(expected, abs=1e-9)
    assert [row["n"] for row in per_class] == truth.sum(axis=0).tolist()
    for row in per_class:
        assert row["interval"][0] < row["auroc"] < row["interval"][1]
    low, high = result.intervals["mean_auroc"]
    assert low < result.metrics["mean_auroc"] < high
    right = (yes > no) == truth
    assert [r["values"]["label_acc"] for r in result.records] == pytest.approx(right.mean(axis=1))
    assert result.records[3]["predicted"] == [CLASSES[c] for c in np.flatnonzero(yes[3] > no[3])]
    assert result.metrics["tie_rate"] == 0.0 and result.metrics["n"] == 60
    assert set(result.intervals) == set(result.metrics) - {"n", "nan_rate"}
    json.dumps([result.to_json(), result.records], allow_nan=False)


def test_descriptors_are_told_with_and_without_their_class(tmp_path, images, truth):
    rows = run(write(tmp_path / "set", truth), TableModel(images)).details["descriptors"]
    assert [r["descriptor"] for r in rows] == [o for c in CLASSES for o in DESCRIPTORS[c]]
    p = np.array([slow_probability(i, "fracture", 0.5) for i in images])
    assert rows[3]["class"] == "fracture"
    assert rows[3]["with_class"] == pytest.approx(p[truth[:, 1]].mean())
    assert rows[3]["without_class"] == pytest.approx(p[~truth[:, 1]].mean())


def test_classification_takes_the_most_probable_class(tmp_path, images):
    labels = np.random.default_rng(1).integers(0, 2, 60).tolist()
    result = run(write(tmp_path / "set", labels=labels), TableModel(images), temperature=0.1)
    p = np.array([[slow_probability(i, c, 0.1) for c in CLASSES] for i in images])
    hits = p.argmax(axis=1) == labels
    assert [r["values"]["acc1"] for r in result.records] == hits.astype(float).tolist()
    assert [r["predicted"] for r in result.records] == [CLASSES[c] for c in p.argmax(axis=1)]
    assert result.metrics["acc1"] == hits.mean() and result.metrics["tie_rate"] == 0.0
    recall = np.mean([hits[np.array(labels) == c].mean() for c in (0, 1)])
    assert result.metrics["mean_per_class_recall"] == pytest.approx(recall)
    assert result.details["descriptors"][-1]["with_class"] is None  # no image of a mass
    json.dumps([result.to_json(), result.records], allow_nan=False)


def test_a_model_that_ignores_texts_gains_nothing(tmp_path, images, truth):
    model = TableModel(images, same=True)
    labels = truth[:, 0].astype(int).tolist()
    metrics = run(write(tmp_path / "single", labels=labels), model).metrics
    assert metrics["acc1"] == 0.0 and metrics["tie_rate"] == 1.0
    metrics = run(write(tmp_path / "multi", truth), model).metrics
    assert metrics["mean_auroc"] == 0.5 and metrics["label_acc"] == 0.0
    assert metrics["tie_rate"] == 1.0


def test_prompts_are_filled_once(tmp_path, images, truth):
    odd = {"edema": ["a {c} in braces"], "fracture": ["x"], "mass": ["{o}"]}
    model = TableModel(images)
    run(
        write(tmp_path / "set", truth, descriptions=odd),
        model,
        positive="{c}: {o}, {c}",
        negative="no {o}",
    )
    assert model.asked == [
        *("edema: a {c} in braces, edema", "fracture: x, fracture", "mass: {o}, mass"),
        *("no a {c} in braces", "no x", "no {o}"),
    ]


def test_intervals_of_auroc_cover_and_do_not_claim_certainty():
    rng = np.random.default_rng(0)
    truth = rng.random((200, 2)) < [0.5, 0.02]
    truth[:2, 1] = True
    scores = rng.normal(size=(200, 2)) + truth
    macro, each = auroc_intervals(truth, scores)
    # Hanley & McNeil 1982: the standard error of an AUROC from its value and the two counts
    area = roc_auc_score(truth[:, 0], scores[:, 0])
    m, n = int(truth[:, 0].sum()), int((~truth[:, 0]).sum())
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (m - 1) * (q1 - area**2) + (n - 1) * (q2 - area**2)
    half = 1.96 * math.sqrt(variance / (m * n))
    assert (each[0][1] - each[0][0]) / 2 == pytest.approx(half, rel=0.25)
    assert each[1][1] - each[1][0] > each[0][1] - each[0][0]  # four images tell less than a hundred
    perfect, sure = auroc_intervals(truth[:, :1], truth[:, :1].astype(float))
    assert perfect == sure[0] and perfect[1] == pytest.approx(1.0) and 0.9 < perfect[0] < 0.99
    one = np.zeros((50, 1), dtype=bool)
    one[7] = True
    assert auroc_intervals(one, np.arange(50.0)[:, None])[1][0][0] >= 0.0
    assert 0.0 <= macro[0] < macro[1] <= 1.0


def test_a_class_that_every_image_has_is_left_out(tmp_path, images, truth):
    truth[:, 1] = True
    result = run(write(tmp_path / "set", truth), TableModel(images))
    assert result.details["per_class"][1]["auroc"] is None
    areas = [result.details["per_class"][c]["auroc"] for c in (0, 2)]
    assert result.metrics["mean_auroc"] == pytest.approx(np.mean(areas))
    with pytest.raises(DataError, match="no class has images with it and images without it"):
        run(write(tmp_path / "all", np.ones((60, 3), dtype=bool)), TableModel(images))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ('["edema"]', r"must be \{class: \[descriptor"),
        ('{"edema": []}', "no list empty"),
        ('{"edema": "haze"}', "must be"),
        ('{"edema": ["haze", " "]}', "must be"),
        ('{"Edema": ["haze"]}', "'Edema' is no class; did you mean 'edema'"),
        ('{"edema": ["haze"]}', "2 classes have no descriptors, e.g. 'fracture'"),
    ],
)
def test_wrong_files_are_named(tmp_path, content, message):
    path = tmp_path / "d.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        read_descriptions(path, CLASSES)
    assert re.search(r"d\.json", str(caught.value))


def test_check_is_strict(tmp_path, truth):
    root = write(tmp_path / "set", truth, descriptions=None)
    with pytest.raises(DataError, match=r"descriptions\.json: cannot be read .*; write"):
        DescriptionEval(str(root), "x").check()
    other = tmp_path / "mine.json"
    other.write_text(json.dumps(DESCRIPTORS))
    folder, descriptors = DescriptionEval(str(root), "x", descriptions=str(other)).check()
    assert folder.kind == "multilabel" and descriptors == [DESCRIPTORS[c] for c in CLASSES]
    for options, message in (
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"positive": "{c} only"}, r"put \{o\}"),
        ({"negative": "none"}, r"put \{o\}"),
    ):
        with pytest.raises(ConfigError, match=message):
            DescriptionEval(str(root), "x", descriptions=str(other), **options).check()
    captions = write_color_set(tmp_path / "pairs", [0, 1], ["red", "green"])
    with pytest.raises(DataError, match="is of type retrieval, not multilabel or classification"):
        DescriptionEval(str(captions), "x").check()


def test_with_the_embedder(tmp_path):
    root = write_color_set(tmp_path, [0, 1, 2, 3, 0, 1])
    names = {name: [f"{name} light", f"the colour {name}"] for name in COLORS}
    (root / "descriptions.json").write_text(json.dumps(names))
    evaluator = DescriptionEval(str(root), "colors", negative="nothing {o}")
    result = evaluator.run(Embedder(color_encoder(), World(), batch_size=4))
    assert result.metrics["tie_rate"] == 1.0  # it takes "nothing red" for red: all are 0.5
    evaluator = DescriptionEval(str(root), "colors", positive="{o}", negative="white but not {o}")
    result = evaluator.run(Embedder(color_encoder(), World(), batch_size=4))
    assert result.metrics["acc1"] == 1.0 and result.details["matrix"][0] == [2, 0, 0, 0]
