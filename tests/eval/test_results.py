"""A result on disk is whole or is none."""

import json

import pytest

from clipkit.checkpoint.files import sha256
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
    assert stored.path == tmp_path / "m" / "shapes@unseen.zero_shot.json"
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


@pytest.mark.parametrize(
    "part, value, said",
    [("metrics", [1], "'metrics' is no mapping"),
     ("metrics", {"acc1": "<b>hi"}, "metrics: 'acc1' is not a finite number"),
     ("metrics", {"a\x1b[2J": None}, r"metrics: 'a\\x1b\[2J' is not"),
     ("metrics", {"acc1": True}, "metrics: 'acc1'"),
     ("metrics", {"acc1": 10**400}, "metrics: 'acc1'"),
     ("metrics", {"acc1": float("nan")}, "NaN is no number"),
     ("details", {"chance": {"acc1": float("-inf")}}, "-Infinity is no number"),
     ("intervals", None, "'intervals' is no mapping"),
     ("intervals", {"acc1": [0.1]}, "intervals: 'acc1' is not two finite numbers"),
     ("intervals", {"acc1": [0.2, 0.1]}, "intervals: 'acc1'"),
     ("intervals", {"acc1": [0.2, "x"]}, "intervals: 'acc1'"),
     ("counts", [2], "'counts' is no mapping"),
     ("counts", {"acc1": "2"}, "counts: 'acc1' is not a finite number"),
     ("macro", {"acc1": ["class"]}, "macro: 'acc1' is not the name of a field")],
)  # fmt: skip
def test_numbers_that_are_none_are_refused_by_name(tmp_path, part, value, said):
    stored = write(tmp_path)
    stored.path.write_text(json.dumps({**stored.data, part: value}))
    with pytest.raises(DataError, match=f"digits.zero_shot.json: .*{said}"):
        read_result(stored.path)


def test_a_number_too_large_for_a_float_is_none(tmp_path):
    stored = write(tmp_path)
    stored.path.write_text(json.dumps(stored.data).replace('"acc1": 0.5', '"acc1": 1e999'))
    with pytest.raises(DataError, match="metrics: 'acc1' is not a finite number"):
        read_result(stored.path)


@pytest.mark.parametrize(
    "record, said",
    [([], "no record with a text as 'id'"),
     ({"values": {}}, "no record with a text as 'id'"),
     ({"id": 1, "values": {}}, "no record with a text as 'id'"),
     ({"id": "x"}, "'values' is no mapping"),
     ({"id": "x", "values": [1]}, "'values' is no mapping"),
     ({"id": "x", "values": {"acc1": "x"}}, "values: 'acc1' is not a finite number"),
     ({"id": "x", "values": {"mpcr": 1.0}}, "'class', which an average needs"),
     ({"id": "x", "values": {"mpcr": 1.0}, "class": ["a"]}, "'class', which an average needs"),
     ({"id": "x", "values": {}, "cluster": {}}, "'cluster', which an average needs")],
)  # fmt: skip
def test_a_record_that_is_none_is_refused_with_its_line(tmp_path, record, said):
    stored = write(tmp_path)
    samples = samples_path(stored.path)
    samples.write_text(samples.read_text() + json.dumps(record) + "\n")
    data = {**stored.data, "samples_sha256": sha256(samples), "macro": {"mpcr": "class"}}
    stored.path.write_text(json.dumps(data))
    with pytest.raises(DataError, match=f"samples.jsonl: line 3: .*{said}.*; evaluate again"):
        read_result(stored.path).records()


@pytest.mark.parametrize("line", ["[" * 100_000, '{"id": "x", "values": {"acc1": NaN}}'])
def test_records_that_are_no_json_are_refused(tmp_path, line):
    stored = write(tmp_path)
    samples = samples_path(stored.path)
    samples.write_text(line + "\n")
    stored.path.write_text(json.dumps({**stored.data, "samples_sha256": sha256(samples)}))
    with pytest.raises(DataError, match="samples.jsonl: cannot be read"):
        read_result(stored.path).records()


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="holds no results"):
        read_results(tmp_path)
    (tmp_path / "other.json").write_text(json.dumps({"not": "ours"}))
    with pytest.raises(DataError, match="holds no results"):
        read_results(tmp_path)
