"""Which stored result a metric is read from."""

from __future__ import annotations

import pytest

from clipkit.bench.study.commands import Places
from clipkit.bench.study.definition import load_study
from clipkit.bench.study.stored import Results
from clipkit.errors import DataError
from tests.fixtures_results import records, store


def _value(path, **metric):
    metric = {"dataset": "digits", "kind": "zero_shot", "metric": "acc1", **metric}
    study = load_study(path(metrics=[metric]))
    results = Results(study, Places(study_out(path), study_out(path)))
    return results.value(study.metrics[0], "plain", ("",), 0)


def study_out(path):
    return path().parent / "out"


def test_the_last_step_counts(study_file) -> None:
    out = study_out(study_file) / "eval/plain/0"
    for step, right in ((100, [0, 0]), (300, [1, 1]), (200, [1, 0])):
        store(out, f"run-{step}", records(right), facts={"step": step})
    assert _value(study_file).mean == 1.0
    store(out, "run-other", records([1]), facts={"step": 300})
    with pytest.raises(DataError, match="run-300.* and .*run-other.* are both 'digits' zero_shot"):
        _value(study_file)


def test_filters(study_file) -> None:
    fields = {"class": ["p", "q", "p"], "tags": [["a"], [], ["a", "b"]]}
    store(study_out(study_file) / "eval/plain/0", "run", records([1, 0, 0], **fields))
    assert _value(study_file, where={"class": "p"}).mean == 0.5
    assert _value(study_file, where={"class": ["p", "q"]}).mean == pytest.approx(1 / 3)
    assert _value(study_file, where={"class": "p"}, tag="b").mean == 0.0
    with pytest.raises(DataError, match="no item of .* passes its filters"):
        _value(study_file, where={"class": "r"})


def test_what_is_not_there(study_file) -> None:
    assert _value(study_file) is None
    store(study_out(study_file) / "eval/plain/0", "run", records([1, 0]))
    assert _value(study_file, dataset="other") is None
    with pytest.raises(DataError, match="has no metric 'acc'; did you mean 'acc1'"):
        _value(study_file, metric="acc")


def test_a_macro_average_stays_one(study_file) -> None:
    own = records([1, 0, 0], **{"class": ["p", "q", "q"]})
    store(study_out(study_file) / "eval/plain/0", "run", own, macro={"acc1": "class"})
    assert _value(study_file).mean == 0.5
