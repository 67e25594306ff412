"""A result on disk is whole or is none."""

import json

import pytest

from clipkit.errors import DataError
from clipkit.eval.base import EvalResult
from clipkit.eval.results import read_result, read_results, result_path, samples_path, write_result

FACTS = {"kind": "zero_shot", "model_name": "m", "key": "k"}


def write(root, dataset="digits", **facts):
    records = [
        {"id": "é\n\u2028\udc80 1", "values": {"acc1": 1.0}},
        {"id": "2", "values": {"acc1": 0.0}},
    ]
    result = EvalResult.from_records("t", dataset, records)
    path = result_path(root, "m", dataset, "zero_shot")
    return write_result(path, result, {**FACTS, **facts})


def test_round_trip(tmp_path):
    stored = write(tmp_path, "shapes/unseen")
    assert stored.path == tmp_path / "m" / "shapes_unseen.zero_shot.json"
    assert (stored.model, stored.dataset, stored.kind) == ("m", "shapes/unseen", "zero_shot")
    assert stored.metrics["acc1"] == 0.5 and stored.intervals["acc1"][0] > 0
    assert [r["id"] for r in stored.records()] == ["é\n\u2028\udc80 1", "2"]
    assert [r.path for r in read_results(tmp_path)] == [stored.path]
    assert read_results(stored.path)[0].metrics == stored.metrics


def test_changed_records_are_refused(tmp_path):
    stored = write(tmp_path)
    samples = samples_path(stored.path)
    samples.write_text(samples.read_text().replace("1.0", "0.0"))
    with pytest.raises(DataError, match="is not the file"):
        stored.records()
    samples.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        stored.records()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"dataset": "x"}', "[" * 100_000])
def test_what_is_no_result_is_refused(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(DataError, match="x.json"):
        read_result(path)


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="holds no results"):
        read_results(tmp_path)
    (tmp_path / "other.json").write_text(json.dumps({"not": "ours"}))
    with pytest.raises(DataError, match="holds no results"):
        read_results(tmp_path)
