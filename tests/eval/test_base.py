"""Metrics are the means of their records; NaN is no result; JSON has CLIP_benchmark's keys."""

import json

import pytest

from clipkit.config.parts import list_kinds
from clipkit.data.eval_sets import find_sets
from clipkit.dist.group import World
from clipkit.eval.base import EvalResult, NonFiniteResult, column, metric_of
from clipkit.eval.embed import Embedder
from clipkit.eval.intervals import wilson
from clipkit.eval.tasks import plan
from tests.eval.test_mixed_modality import write as write_mixed
from tests.fixtures_eval_sets import WORDS, random_encoder, write_noise_sets

RECORDS = [
    {"id": "a", "class": "x", "values": {"acc": 1.0, "both": 1.0}},
    {"id": "b", "class": "x", "values": {"acc": 0.0, "both": 0.0}},
    {"id": "c", "class": "x", "values": {"acc": 0.0, "both": 0.0}},
    {"id": "d", "class": "y", "values": {"acc": 1.0, "both": 1.0}},
    {"id": "t", "unit": "caption", "cluster": "a", "values": {"back": 1.0}},
    {"id": "u", "unit": "caption", "cluster": "a", "values": {"back": 0.0}},
]


def test_means_intervals_and_counts():
    result = EvalResult.from_records(
        "t", "d", RECORDS, macro={"both": "class"}, metrics={"gap": 0.3}, intervals={"gap": (0, 1)}
    )
    assert result.metrics == {
        "n": 6, "nan_rate": 0.0, "acc": 0.5, "both": (1 / 3 + 1) / 2, "back": 0.5, "gap": 0.3,
    }  # fmt: skip
    assert result.counts == {"gap": 6, "acc": 4, "both": 4, "back": 2}
    assert result.intervals["acc"] == wilson(0.5, 4) and result.intervals["gap"] == (0, 1)


def test_counts_given_are_kept():
    given = {"metrics": {"gap": 0.3}, "intervals": {"gap": (0, 1)}, "counts": {"gap": 2, "acc": 3}}
    assert EvalResult.from_records("t", "d", RECORDS, **given).counts == {
        "gap": 2, "acc": 3, "both": 4, "back": 2,
    }  # fmt: skip


def write_all_types(root):
    """Sets of noise that every kind can read, and a file of tasks that need arguments."""
    write_noise_sets(root, 70)
    write_mixed(root / "mixed", [(0, "text")], [(0, "text"), (1, "image")], [(0, 0, 1)])
    (root / "classes" / "concepts.txt").write_text("\n".join(WORDS))
    for name in ("classes", "labels"):
        told = json.dumps({word: [f"{word} paint"] for word in WORDS[:5]})
        (root / name / "descriptions.json").write_text(told)
    tasks = [
        {"kind": "out_of_distribution", "data": "classes", "ood": "pairs"},
        {"kind": "linear_probe", "data": "classes", "name": "few", "shots": [1], "seeds": 2},
    ]
    (root / "more.yaml").write_text(json.dumps(tasks))


@pytest.mark.slow
def test_every_metric_of_every_kind_has_an_interval_and_a_count(tmp_path):
    write_all_types(tmp_path)
    jobs, _ = plan(find_sets(tmp_path), ["*", str(tmp_path / "more.yaml")])
    assert {job.kind for job in jobs} == set(list_kinds("eval"))
    embedder = Embedder(random_encoder(0), World())
    for job in jobs:
        result = job.evaluator.run(embedder)
        plain = set(result.metrics) - {"n", "captions", "nan_rate"}
        assert plain == set(result.intervals) == set(result.counts), job.kind
        assert all(isinstance(n, int) and n > 0 for n in result.counts.values()), job.kind
        if job.evaluator.name in ("classes", "labels", "few"):
            assert "templates_hash" in result.provenance, job.kind


def test_samples_of_one_image_are_one_cluster():
    found = column(RECORDS, "back")
    assert found.keys == [("caption", "t"), ("caption", "u")]
    assert found.clusters.tolist() == [0, 0] and found.mean == 0.5
    assert column(RECORDS, "acc").clusters is None
    value, interval, n = metric_of(RECORDS, "both", "class")
    assert (value, n) == (pytest.approx(2 / 3), 4) and interval[0] < value < interval[1]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_metric_that_is_not_finite_is_named(value):
    with pytest.raises(NonFiniteResult, match="digits/zs: acc1 is") as caught:
        EvalResult("zs", "digits", {"acc1": value})
    assert caught.value.exit_status == 5


def test_json_has_clip_benchmarks_keys():
    result = EvalResult(
        "zeroshot_classification",
        "digits",
        {"acc1": 0.5},
        {"acc1": (0.4, 0.6)},
        provenance={"data": "/x"},
    )
    assert json.loads(json.dumps(result.to_json())) == {
        "dataset": "digits",
        "task": "zeroshot_classification",
        "metrics": {"acc1": 0.5},
        "intervals": {"acc1": [0.4, 0.6]},
        "counts": {},
        "macro": {},
        "details": {},
        "data": "/x",
    }
