"""The probe against scikit-learn, the sweep against every peak, and no look at test labels."""

import json
import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss, recall_score, top_k_accuracy_score

from clipkit.config.parts import check_part
from clipkit.data.wds_folder import open_folder
from clipkit.data.wds_write import write_folder
from clipkit.dist.group import World
from clipkit.errors import ConfigError, DataError
from clipkit.eval import linear_probe
from clipkit.eval.classification import score_records
from clipkit.eval.embed import Embedder
from clipkit.eval.intervals import mean_interval
from clipkit.eval.linear_probe import (
    LinearProbeEval,
    c_of,
    cut_fraction,
    cut_shots,
    search,
    shots_interval,
)
from tests.fixtures_encoder import color_encoder
from tests.fixtures_shards import image_bytes

NAMES = ["ash", "bay", "cat", "dew", "elm", "fig"]


def write_split(root, split, labels, noise=40, seed=0):
    """Flat images, a colour a class, blurred by noise so that classes overlap."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(9).integers(40, 215, (len(NAMES), 3))
    samples = []
    for label in labels:
        color = (centres[label] + rng.normal(0, noise, 3)).clip(0, 255).astype(int)
        samples.append({"png": image_bytes(tuple(color.tolist())), "cls": b"%d" % label})
    write_folder(root, split, samples, classnames=NAMES, templates=["a {c}"])


def write_set(root, train=30, test=12, **options):
    write_split(root, "train", [*range(6)] * train, seed=1, **options)
    write_split(root, "test", [*range(6)] * test + [0, 0, 1], seed=2, **options)
    return root


@pytest.fixture(scope="module")
def colors(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("probe") / "colors")


def model(**options):
    return Embedder(color_encoder(**options), World())


def run(root, encoder=None, **options):
    return LinearProbeEval(str(root), "colors", **options).run(encoder or model())


def test_metrics_equal_scikit_learn_at_the_chosen_c(colors):
    result, encoder = run(colors), model()
    train, test = open_folder(colors, "train"), open_folder(colors)
    x, y = encoder.images(train).double().numpy(), train.labels()
    queries, labels = encoder.images(test).double().numpy(), test.labels()
    peer = LogisticRegression(C=result.provenance["C"], tol=1e-9, max_iter=20000).fit(x, y)
    predicted, scores = peer.predict(queries), peer.predict_proba(queries)
    expected = {
        "lp_acc1": accuracy_score(labels, predicted),
        "lp_acc5": top_k_accuracy_score(labels, scores, k=5),
        "lp_mean_per_class_recall": recall_score(labels, predicted, average="macro"),
    }
    assert {k: result.metrics[k] for k in expected} == pytest.approx(expected, abs=1e-12)
    assert 0.3 < expected["lp_acc1"] < 0.98  # neither lost nor trivial
    names = [NAMES[p] for p in predicted]
    assert [record["predicted"] for record in result.records] == names
    assert result.task == "linear_probe" and result.metrics["n"] == 75
    assert set(result.intervals) >= set(expected)
    low, high = result.intervals["lp_acc1"]
    assert low < expected["lp_acc1"] < high


def test_the_sweep_is_judged_on_images_held_out_of_train(colors):
    result, train = run(colors, validation_fraction=0.3, seed=4), open_folder(colors, "train")
    x, y = model().images(train).double().numpy(), torch.tensor(train.labels())
    fit, held = cut_fraction(y, 0.3, 4)
    assert len(held) == 54
    rows = result.details["sweep"]
    assert [row["C"] for row in rows] == sorted(row["C"] for row in rows) and len(rows) == 15
    for row in [row for row in rows if 1e-2 <= row["C"] <= 1e2]:
        peer = LogisticRegression(C=row["C"], tol=1e-9, max_iter=20000).fit(x[fit], y[fit])
        assert row["validation_acc1"] == pytest.approx(peer.score(x[held], y[held]))
        loss = log_loss(y[held], peer.predict_proba(x[held]))
        assert row["validation_loss"] == pytest.approx(loss, abs=1e-3)
    best = max(rows, key=lambda row: (row["validation_acc1"], -row["validation_loss"]))
    assert result.provenance["C"] == best["C"]


def test_c_and_probe_do_not_depend_on_test_labels(colors, tmp_path):
    first = run(colors, shots=(2,), seeds=1)
    other = tmp_path / "shuffled"
    write_split(other, "train", [*range(6)] * 30, seed=1)
    members = open_folder(colors)
    pixels = [np.array(image)[0, 0] for image in members.images(0, len(members))]
    labels = np.random.default_rng(3).permutation(members.labels())
    samples = [
        {"png": image_bytes(tuple(int(v) for v in p)), "cls": b"%d" % label}
        for p, label in zip(pixels, labels)
    ]
    write_folder(other, "test", samples, classnames=NAMES, templates=["a {c}"])
    second = run(other, shots=(2,), seeds=1)
    assert second.provenance["C"] == first.provenance["C"]
    assert second.details["sweep"] == first.details["sweep"]
    assert second.details["few_shot"][0]["C"] == first.details["few_shot"][0]["C"]
    assert [r["predicted"] for r in second.records] == [r["predicted"] for r in first.records]
    assert second.metrics["lp_acc1"] < first.metrics["lp_acc1"] - 0.2


def test_the_final_probe_learns_from_all_of_train(colors):
    result = run(colors)
    encoder, train, test = model(), open_folder(colors, "train"), open_folder(colors)
    x, y = encoder.images(train), torch.tensor(train.labels())
    fit, _ = cut_fraction(y, 0.2, 0)
    part = linear_probe.LogisticProblem(x[fit], y[fit], 6).fit(result.provenance["C"])
    whole = linear_probe.LogisticProblem(x, y, 6).fit(result.provenance["C"])
    labels = torch.tensor(test.labels())

    def margins(probe):
        found = probe.log_probabilities(encoder.images(test))
        return [r["margin"] for r in score_records(test, found, labels)]

    found = [r["margin"] for r in result.records]
    assert found == pytest.approx(margins(whole), abs=1e-2)
    assert found != pytest.approx(margins(part), abs=1e-2)


def test_few_shots(colors):
    result = run(colors, shots=(1, 8), seeds=2)
    few = {row["shots"]: row for row in result.details["few_shot"]}
    for k in (1, 8):
        name = f"lp_acc1@{k}shot"
        assert result.metrics[name] == pytest.approx(few[k]["mean"])
        assert few[k]["mean"] == pytest.approx(np.mean(few[k]["draws"]))
        assert few[k]["sd"] == pytest.approx(np.std(few[k]["draws"], ddof=1))
        assert len(few[k]["draws"]) == len(few[k]["C"]) == 2
        low, high = result.intervals[name]
        assert 0 <= low < result.metrics[name] < high <= 1
        of_images = mean_interval(np.array([r["values"][name] for r in result.records]))
        assert low < of_images[0] and of_images[1] < high  # the draws of shots widen it
    assert few[8]["mean"] > few[1]["mean"]
    assert result.provenance["fewshot_k"] == [1, 8] and result.provenance["seeds"] == 2


def test_few_shot_draws_equal_scikit_learn(colors):
    row = run(colors, shots=(4,), seeds=2).details["few_shot"][0]
    encoder, train, test = model(), open_folder(colors, "train"), open_folder(colors)
    x, y = encoder.images(train), torch.tensor(train.labels())
    for draw, c in enumerate(row["C"]):
        fit, _ = cut_shots(y, 4, draw)
        assert len(fit) == 24
        peer = LogisticRegression(C=c, tol=1e-9, max_iter=20000)
        peer.fit(x[fit].double().numpy(), y[fit].numpy())
        score = peer.score(encoder.images(test).double().numpy(), test.labels())
        assert row["draws"][draw] == pytest.approx(score)


@pytest.mark.parametrize("peak", range(97))
def test_the_sweep_finds_every_peak_within_an_eighth_of_a_decade(peak):
    asked = []

    def score(step):
        asked.append(step)
        return -abs(step - peak), 0.0

    assert search(score) == peak
    assert asked[:7] == [0, 16, 32, 48, 64, 80, 96] and len(asked) <= 15
    assert len(set(asked)) == len(asked)


def test_steps_of_the_sweep():
    assert [c_of(s) for s in (0, 48, 96)] == pytest.approx([1e-6, 1.0, 1e6])
    assert c_of(49) / c_of(48) == pytest.approx(10 ** (1 / 8))


def test_ties_of_the_sweep_go_to_the_loss_then_to_the_stronger_penalty():
    assert search(lambda step: (0.5, 0.0)) == 0
    assert search(lambda step: (0.5, -abs(step - 37.0))) == 37
    assert search(lambda step: (float(step >= 40), 0.0)) == 40


def test_cut_fraction_is_stratified_disjoint_and_seeded():
    targets = torch.tensor([0] * 50 + [1] * 10 + [2] * 2 + [3])
    fit, held = cut_fraction(targets, 0.2, 5)
    assert torch.cat([fit, held]).sort().values.tolist() == list(range(63))
    assert torch.bincount(targets[held], minlength=4).tolist() == [10, 2, 1, 0]
    again = cut_fraction(targets, 0.2, 5)
    assert torch.equal(held, again[1])
    assert not torch.equal(held, cut_fraction(targets, 0.2, 6)[1])
    assert torch.bincount(targets[cut_fraction(targets, 0.99, 5)[0]]).tolist() == [1, 1, 1, 1]


def test_cut_shots_is_disjoint_and_nested():
    targets = torch.arange(3).repeat(20)
    one, two = cut_shots(targets, 1, 0), cut_shots(targets, 8, 0)
    assert torch.bincount(targets[one[0]]).tolist() == [1, 1, 1]
    assert torch.bincount(targets[one[1]]).tolist() == [1, 1, 1]
    assert torch.bincount(targets[two[0]]).tolist() == [8, 8, 8]
    assert torch.bincount(targets[two[1]]).tolist() == [4, 4, 4]
    assert set(one[0].tolist()) <= set(two[0].tolist())
    assert not set(two[0].tolist()) & set(two[1].tolist())
    assert not torch.equal(one[0], cut_shots(targets, 1, 1)[0])


def test_interval_of_shots_by_hand():
    same = np.tile([1.0] * 60 + [0.0] * 40, (3, 1))
    assert shots_interval(same) == pytest.approx(mean_interval(same[0]))
    assert shots_interval(same[:1]) == pytest.approx(mean_interval(same[0]))
    assert shots_interval(np.ones((3, 10))) == pytest.approx(mean_interval(np.ones(10)))
    right = np.zeros((2, 10000))
    right[0, :5000], right[1, :5200] = 1, 1  # accuracies 0.5 and 0.52
    spread = 12.7062 * (0.02 / math.sqrt(2)) / math.sqrt(2)  # Student's t of one degree
    low, high = mean_interval(right.mean(axis=0))
    expected = (0.51 - math.hypot(0.51 - low, spread), 0.51 + math.hypot(high - 0.51, spread))
    assert shots_interval(right) == pytest.approx(expected, abs=1e-5)


def test_interval_of_shots_covers_the_accuracy_over_draws_and_images():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(50):
        skill = rng.normal(0, 0.3, (4, 1)) + rng.normal(0, 1, 150)  # a draw's and an image's part
        low, high = shots_interval((skill + rng.normal(0, 1, (4, 150)) > 0).astype(float))
        hits += low <= 0.5 <= high
    assert hits >= 45


def test_a_constant_model_knows_the_prior_only(colors):
    def blind(color):
        return torch.ones_like(color) / math.sqrt(3)

    result = run(colors, model(image_features=blind), shots=(1,))
    assert result.metrics["lp_acc1"] == 0.0 and result.metrics["tie_rate"] == 1.0
    assert result.metrics["lp_acc1@1shot"] == 0.0


def test_a_class_that_is_not_in_train_is_missed_and_the_result_stays_json(tmp_path):
    write_split(tmp_path, "train", [0, 1, 2, 4] * 10, seed=1)
    write_split(tmp_path, "test", [0, 3, 5] * 5, seed=2)
    result = run(tmp_path)
    rows = {row["class"]: row["recall"] for row in result.details["per_class"]}
    assert rows["dew"] == rows["fig"] == 0.0
    json.dumps([result.to_json(), result.records], allow_nan=False)


def test_impossible_settings_are_named(colors, tmp_path):
    for options, message in (
        ({"shots": (0,)}, "start at 1"),
        ({"seeds": 0}, "start at 1"),
        ({"validation_fraction": 1.0}, "validation_fraction=1.0"),
        ({"train_split": "test"}, "another split"),
    ):
        with pytest.raises(ConfigError, match=message):
            LinearProbeEval(str(colors), "colors", **options).check()
    with pytest.raises(DataError, match="30 train images, 30 shots need 31.*leave 30 out"):
        LinearProbeEval(str(colors), "colors", shots=(1, 30)).check()
    LinearProbeEval(str(colors), "colors", shots=(1, 29)).check()
    with pytest.raises(DataError, match="learn shards not found; name the split.*train_split"):
        LinearProbeEval(str(colors), "colors", train_split="learn").check()
    write_split(tmp_path, "train", range(6))
    write_split(tmp_path, "test", range(6))
    with pytest.raises(DataError, match="no class has two train images"):
        run(tmp_path)


def test_shots_come_from_yaml():
    spec = check_part("eval", {"kind": "linear_probe", "shots": [1, 4]}, "eval", extra={})
    assert list(spec["shots"]) == [1, 4] and spec["train_split"] == "train"
    with pytest.raises(ConfigError):
        check_part("eval", {"kind": "linear_probe", "shots": ["many"]}, "eval", extra={})
