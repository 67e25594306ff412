"""Wilson's interval against published values, and what a result looks like as JSON."""

import json

import pytest

from clipkit.eval.base import EvalResult, wilson


@pytest.mark.parametrize(
    ("share", "n", "low", "high"),
    [
        (0.5, 10, 0.2366, 0.7634),  # Newcombe 1998 and Brown, Cai & DasGupta 2001 give these
        (0.0, 10, 0.0, 0.2775),
        (1.0, 10, 0.7225, 1.0),
        (81 / 263, 263, 0.2553, 0.3662),
        (15 / 148, 148, 0.0624, 0.1605),
        (0.0, 20, 0.0, 0.1611),
        (1 / 29, 29, 0.0061, 0.1718),
    ],
)
def test_wilson(share, n, low, high):
    assert wilson(share, n) == pytest.approx((low, high), abs=5e-5)


def test_nothing_is_known_of_no_samples():
    assert wilson(0.0, 0) == (0.0, 1.0)


def test_json_has_clip_benchmarks_keys():
    result = EvalResult(
        "zeroshot_classification", "digits", {"acc1": 0.5}, {"acc1": (0.4, 0.6)}, {"data": "/x"}
    )
    assert json.loads(json.dumps(result.to_json())) == {
        "dataset": "digits",
        "task": "zeroshot_classification",
        "metrics": {"acc1": 0.5},
        "intervals": {"acc1": [0.4, 0.6]},
        "data": "/x",
    }
