"""Stored results side by side: what is paired, what is only shown, the warnings, the verdicts."""

import json

import numpy as np
import pytest

from clipkit.errors import ConfigError, DataError
from clipkit.eval.compare import compare, lower_is_better, read_model
from tests.fixtures_results import records, store


def correct(n, share, seed=0):
    return (np.random.default_rng(seed).random(n) < share).tolist()


def rows_of(found):
    return {(r.dataset, r.kind, r.metric, r.part): r for r in found.rows}


def test_samples_are_paired_by_id_whatever_their_order(tmp_path):
    right = correct(400, 0.5)
    own = records(right)
    worse = records([r and i % 4 > 0 for i, r in enumerate(right)])
    a = store(tmp_path, "a", own)
    b = store(tmp_path, "b", worse[::-1])
    (row,) = compare(a, b).rows
    lost = sum(r and i % 4 == 0 for i, r in enumerate(right))
    assert (row.only_a, row.only_b, row.n) == (lost, 0, 400)
    assert row.difference == pytest.approx(-lost / 400)
    assert row.a == pytest.approx(sum(right) / 400)
    assert row.interval[0] < row.difference < row.interval[1] < 0
    assert (row.verdict, row.test) == ("worse", "mcnemar_exact")
    assert compare(b, a).rows[0].verdict == "better"


def test_a_model_against_itself(tmp_path):
    a = store(tmp_path, "a", records(correct(50, 0.5)))
    found = compare(a, a)
    assert [(r.difference, r.p, r.p_holm, r.verdict) for r in found.rows] == [(0.0, 1.0, 1.0, "-")]
    assert found.warnings == []


def test_a_lower_tie_rate_is_better(tmp_path):
    sides = []
    for model, ties in (("a", 30), ("b", 2)):
        own = [{"id": str(i), "values": {"tie_rate": float(i < ties)}} for i in range(100)]
        sides.append(store(tmp_path, model, own))
    assert compare(*sides).rows[0].verdict == "better"
    assert all(map(lower_is_better, ("tie_rate", "ece", "nll", "text_mean_rank", "top1_error")))
    assert not any(map(lower_is_better, ("acc1", "image_retrieval_recall@5", "effective_rank")))


def test_a_share_is_higher_and_not_better(tmp_path):
    sides = []
    for model, count in (("a", 10), ("b", 60)):
        own = [{"id": str(i), "values": {"share_text@10": float(i < count)}} for i in range(100)]
        sides.append(store(tmp_path, model, own))
    assert compare(*sides).rows[0].verdict == "higher"
    assert compare(*sides[::-1]).rows[0].verdict == "lower"


def test_the_metrics_of_whole_sets_are_one_family(tmp_path):
    """7 of 8 discordant pairs: p = 0.07; 9 of 10: p = 0.02, real alone and not among five."""
    flips = [1] * 9 + [0]
    own, other = records([0] * 9 + [1] + [1] * 30), records(flips + [1] * 30)
    a, b = store(tmp_path, "a", own), store(tmp_path, "b", other)
    alone = compare(a, b).rows[0]
    assert alone.p == alone.p_holm == pytest.approx(22 / 1024)
    assert alone.verdict == "better"
    for dataset in "vwxy":
        for model in ("a", "b"):
            store(tmp_path, model, records([1] * 40), dataset=dataset)
    among = rows_of(compare(a, b))["digits", "zero_shot", "acc1", ""]
    assert among.p == alone.p
    assert among.p_holm == pytest.approx(5 * alone.p)
    assert among.verdict == "-"


@pytest.mark.parametrize("by", [None, "class"])
def test_copies_tie_rates_shares_and_parts_leave_a_verdict_as_it_is(tmp_path, by):
    sides = []
    for model, right in (("a", [0] * 9 + [1]), ("b", [1] * 9 + [0])):
        own = [
            {
                "id": str(i),
                "class": "xy"[i % 2],
                "values": {
                    "tie_rate": float(r),  # the very values of acc
                    "share_text@1": float(not r),
                    "acc": float(r),
                    "text_acc": float(r),
                },
            }
            for i, r in enumerate(right + [1] * 30)
        ]
        sides.append(store(tmp_path, model, own, kind="selection"))
    rows = rows_of(compare(*sides, by=by))
    for name in ("acc", "text_acc"):
        row = rows["digits", "selection", name, ""]
        assert (row.p_holm, row.verdict) == (pytest.approx(22 / 1024), "better")
    assert row.same_as == "acc"
    for name in ("tie_rate", "share_text@1"):
        assert rows["digits", "selection", name, ""].p_holm == pytest.approx(44 / 1024)
    parts = [r for r in rows.values() if r.part and r.metric == "acc"]
    assert [r.p_holm for r in parts] == ([] if by is None else pytest.approx([0.125, 0.375]))


def test_equal_numbers_of_other_samples_are_tests_of_their_own(tmp_path):
    sides = []
    for model, right in (("a", [0] * 9 + [1]), ("b", [1] * 9 + [0])):
        own = [
            {"id": f"{side}{i}", "unit": side, "values": {f"{side}_recall@1": float(r)}}
            for side in ("image", "text")
            for i, r in enumerate(right)
        ]
        sides.append(store(tmp_path, model, own, kind="retrieval"))
    rows = compare(*sides).rows
    assert [(r.p_holm, r.same_as) for r in rows] == [(pytest.approx(44 / 1024), "")] * 2


def test_only_what_both_have_is_compared_and_the_rest_is_named(tmp_path):
    a = store(tmp_path, "a", records([1, 0, 1, 1]))
    b = store(tmp_path, "b", records([1, 0, 1])[1:], metrics={"extra": 1.0})
    store(tmp_path, "a", records([1]), dataset="flowers")
    store(tmp_path, "b", records([1]), dataset="digits", kind="probe")
    found = compare(a, b)
    assert list(rows_of(found)) == [("digits", "zero_shot", "acc1", "")]
    row = found.rows[0]
    assert (row.n, row.a, row.b) == (2, 0.5, 0.5)
    assert found.warnings == [
        "only in A: flowers/zero_shot",
        "only in B: digits/probe",
        "digits/zero_shot: not on both sides: extra",
        "digits/zero_shot: 2 samples paired, 2 only in A and 0 only in B are left out (acc1)",
    ]


def test_other_data_and_other_settings_are_warned_of_by_name(tmp_path):
    common = {"split": "test", "weights_hash": "w", "seconds": 1.5, "temperature": 0.5}
    outcomes = {"C": 1, "iterations": 12, "converged": True, "num_discriminants": 9}
    facts_a = {
        **common,
        **outcomes,
        "data_hash": "d1",
        "arguments": {"templates": "x", "alpha": 0.5},
    }
    facts_b = {
        **common,
        **{"C": 10, "iterations": 31, "converged": False, "num_discriminants": 8},
        "data_hash": "d2",
        "arguments": {"templates": "x", "alpha": 0.3},
        "weights_hash": "v",
        "temperature": 0.7,
    }
    a = store(tmp_path, "a", records([1, 0]), facts=facts_a)
    b = store(tmp_path, "b", records([1, 0]), facts=facts_b)
    assert compare(a, b).warnings == [
        "digits/zero_shot: data_hash differs: d1 in A, d2 in B",
        "digits/zero_shot: arguments.alpha differs: 0.5 in A, 0.3 in B",
    ]


def test_a_metric_that_is_no_mean_is_shown_with_both_intervals(tmp_path):
    def write(model, value, bounds):
        more = {"metrics": {"ece": value}, "intervals": {"ece": bounds}}
        return store(tmp_path, model, records([1, 0, 1]), **more)

    a = write("a", 0.1, (0.08, 0.12))
    far, near = write("b", 0.2, (0.18, 0.22)), write("c", 0.13, (0.11, 0.15))
    for other, verdict in ((far, "apart"), (near, "overlap")):
        row = rows_of(compare(a, other))["digits", "zero_shot", "ece", ""]
        assert (row.verdict, row.test, row.p, row.interval) == (verdict, "intervals", None, None)
        assert row.interval_a == (0.08, 0.12)
    assert ("digits", "zero_shot", "n", "") not in rows_of(compare(a, far))


def test_a_metric_that_its_records_do_not_give_is_no_mean(tmp_path):
    """A value set over the records' mean, or averaged another way, must not be paired."""
    own = records([1, 0, 1, 1], **{"class": ["x", "x", "y", "y"]})  # both means are 0.75
    a = store(tmp_path, "a", own)
    b = store(tmp_path, "b", own, metrics={"acc1": 0.9}, intervals={"acc1": (0.8, 1.0)})
    c = store(tmp_path, "c", own, macro={"acc1": "class"})
    assert compare(a, b).rows[0].test == compare(a, c).rows[0].test == "intervals"
    assert "averaged in two ways" in compare(a, c).warnings[0]


def test_macro_metrics_are_paired_within_their_groups(tmp_path):
    classes = ["x"] * 300 + ["y"] * 30
    sides = []
    for model, right in (("a", [1] * 330), ("b", [1] * 300 + [0] * 15 + [1] * 15)):
        own = [
            {"id": str(i), "class": c, "values": {"acc1": float(r), "mpcr": float(r)}}
            for i, (r, c) in enumerate(zip(right, classes))
        ]
        sides.append(store(tmp_path, model, own, macro={"mpcr": "class"}))
    rows = rows_of(compare(*sides))
    assert rows["digits", "zero_shot", "acc1", ""].difference == pytest.approx(-15 / 330)
    macro = rows["digits", "zero_shot", "mpcr", ""]
    assert macro.difference == pytest.approx(-0.25)
    assert macro.interval[0] < -0.3
    assert macro.interval[1] < -0.15


def test_captions_of_one_image_are_drawn_together(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.random(100) < 0.55
    sides = []
    for model, right in (("a", np.zeros(500)), ("b", np.repeat(images, 5))):
        own = records(right, cluster=[f"i{i // 5}" for i in range(500)], unit=["caption"] * 500)
        sides.append(store(tmp_path, model, own))
    (row,) = compare(*sides).rows
    assert row.test == "paired_bootstrap"
    assert row.interval[1] - row.interval[0] == pytest.approx(2 * 1.96 * 0.0497, rel=0.1)


def test_a_row_for_each_class_and_each_tag(tmp_path):
    classes, tags = ["x", "y", "y", "x"], [["dark"], [], ["dark", "small"], ["small"]]
    extra = {"class": classes, "tags": tags}
    a = store(tmp_path, "a", records([1, 1, 0, 0], **extra), macro={})
    b = store(tmp_path, "b", records([1, 0, 1, 1], **extra)[::-1])
    by_class = rows_of(compare(a, b, by="class"))
    found = {part: (r.n, r.a, r.b) for (*_, part), r in by_class.items()}
    assert found == {"": (4, 0.5, 0.75), "x": (2, 0.5, 1.0), "y": (2, 0.5, 0.5)}
    by_tags = rows_of(compare(a, b, by="tags"))
    found = {part: (r.n, r.a, r.b) for (*_, part), r in by_tags.items()}
    assert found == {"": (4, 0.5, 0.75), "dark": (2, 0.5, 1.0), "small": (2, 0.0, 1.0)}
    assert all(row.interval_a is None for (*_, part), row in by_tags.items() if part)
    store(tmp_path, "b", records([1, 0, 1, 1], **extra)[1:])
    short = rows_of(compare(a, b, by="class"))
    found = {part: (r.n, r.a, r.b) for (*_, part), r in short.items() if part}
    assert found == {"x": (1, 0.0, 1.0), "y": (2, 0.5, 0.5)}
    with pytest.raises(ConfigError, match=r"--by 'clas': unknown; did you mean 'class'\?"):
        compare(a, b, by="clas")


def test_rows_are_split_by_class_and_tags_only(tmp_path):
    a = store(tmp_path, "a", records([1, 0], predicted=["x", "y"], rank=[1, 2]))
    for name in ("foo", "predicted", "rank"):
        with pytest.raises(ConfigError) as error:
            compare(a, a, by=name)
        assert str(error.value) == f"--by '{name}': unknown; choose from: class, tags"
    with pytest.raises(ConfigError, match="--by tags: no metric of these results can be split"):
        compare(a, a, by="tags")


def test_a_mean_over_classes_has_no_row_for_one_class(tmp_path):
    own = [{"id": name, "class": name, "values": {"mpcr": 1.0, "acc1": 1.0}} for name in ("x", "y")]
    a = store(tmp_path, "a", own, macro={"mpcr": "class"})
    found = [(metric, part) for _, _, metric, part in rows_of(compare(a, a, by="class"))]
    assert found == [("mpcr", ""), ("acc1", ""), ("acc1", "x"), ("acc1", "y")]


def test_several_models_at_a_place_are_listed(tmp_path):
    a = store(tmp_path, "a", records([1]))
    b = store(tmp_path, "b", records([1]))
    with pytest.raises(ConfigError) as error:
        compare(tmp_path, b)
    assert str(error.value) == f"{tmp_path}: holds results of 2 models; name one: {a}, {b}"
    assert [r.model for r in read_model(a)] == ["a"]


def test_a_single_file_is_a_place(tmp_path):
    a = store(tmp_path, "a", records([1]))
    b = store(tmp_path, "b", records([1]))
    store(tmp_path, "b", records([1]), dataset="flowers")
    found = compare(a, b / "digits.zero_shot.json")
    assert [r.dataset for r in found.rows] == ["digits"]


def test_nothing_in_common_is_an_error(tmp_path):
    a = store(tmp_path, "a", records([1]))
    b = store(tmp_path, "b", records([1]), dataset="flowers")
    with pytest.raises(DataError, match="no data set, task and metric in common"):
        compare(a, b)
    own = [{"id": "other", "values": {"acc1": 1.0}}]
    with pytest.raises(DataError, match="in common"):
        compare(a, store(tmp_path, "c", own))


def test_a_sample_that_stands_twice_is_an_error(tmp_path):
    a = store(tmp_path, "a", records([1, 0]))
    b = store(tmp_path, "b", records([1, 0]) + records([1]))
    with pytest.raises(DataError, match="sample image/s0 stands twice"):
        compare(a, b)


def test_records_changed_since_they_were_written_are_refused(tmp_path):
    a = store(tmp_path, "a", records([1, 0]))
    samples = a / "digits.zero_shot.samples.jsonl"
    samples.write_text(samples.read_text().replace("1.0", "0.0"))
    with pytest.raises(DataError, match="is not the file"):
        compare(a, a)


def test_the_rows_are_valid_json(tmp_path):
    more = {"metrics": {"ece": 0.1}, "intervals": {"ece": (0.0, 0.2)}}
    a = store(tmp_path, "a", records([1, 0, 1]), **more)
    b = store(tmp_path, "b", records([1, 1, 0]), **more)
    found = compare(a, b).to_json()
    assert json.loads(json.dumps(found, allow_nan=False))["rows"][0]["metric"] == "acc1"
    assert (found["a"], found["b"], found["level"]) == ("a", "b", 0.05)
