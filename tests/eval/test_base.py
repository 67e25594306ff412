"""Metrics are the means of their records; NaN is no result; JSON has CLIP_benchmark's keys."""

import json

import pytest

from clipkit.eval.base import EvalResult, NonFiniteResult, column, metric_of
from clipkit.eval.intervals import wilson

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
    assert result.counts == {"acc": 4, "both": 4, "back": 2}
    assert result.intervals["acc"] == wilson(0.5, 4) and result.intervals["gap"] == (0, 1)


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
