"""Checkpoints, summary and trends of a report."""

import math
from dataclasses import replace

import pytest

from clipkit.eval import plots, report_data
from clipkit.eval.report_data import Bar, Checkpoint
from tests.eval.report_results import made_up, store


def results(tmp_path, *facts, **metrics):
    """One result of `acc1` a (model, step, value) triple."""
    return [
        store(
            tmp_path / str(i),
            made_up({"acc1": value, **metrics}, {"acc1": (value - 0.1, value + 0.1)}),
            "zero_shot",
            model,
            step,
        )
        for i, (model, step, value) in enumerate(facts)
    ]


@pytest.mark.parametrize(
    "name, step, run, label",
    [
        ("big", None, "big", "big"),
        ("big", 70, "big", "big step 70"),
        ("r1-step_00000070", 70, "r1", "r1-step_00000070"),
        ("ViT-B-32", 32, "ViT-B-32", "ViT-B-32 step 32"),
        ("step_1", 1, "step_1", "step_1 step 1"),
    ],
)
def test_a_checkpoint_and_its_run(name, step, run, label):
    checkpoint = Checkpoint(name, step, "")
    assert checkpoint.run == run and checkpoint.label == label


def test_equal_names_are_told_apart_by_weights():
    three = [
        Checkpoint("a", None, "1" * 64),
        Checkpoint("a", None, "2" * 64),
        Checkpoint("b", 1, ""),
    ]
    assert report_data.labels(three) == ["a (11111111)", "a (22222222)", "b step 1"]


def test_the_summary_has_a_row_a_metric_and_a_column_a_checkpoint(tmp_path):
    a, b = results(tmp_path, ("a", None, 0.5), ("b", None, 0.65), rmg=2.5)
    b.data["counts"] = {"acc1": 8}
    checkpoints = [report_data.checkpoint_of(r) for r in (a, b)]
    (group,) = report_data.summarise([a, b], checkpoints)
    assert (group.dataset, group.kind) == ("made", "zero_shot")
    acc1, rmg = group.rows
    assert (acc1.metric, acc1.n, acc1.overlap, acc1.main) == ("acc1", "10 / 8", "overlap", True)
    assert [v.text for v in acc1.values] == ["0.5000", "0.6500"]
    assert acc1.values[0].interval == "0.4000 – 0.6000"
    assert acc1.values[0].bar == Bar(40.0, 20.0, 50.0)
    assert (rmg.metric, rmg.main, rmg.overlap) == ("rmg", True, "")
    assert rmg.values[0].text == "2.5000" and rmg.values[0].bar is None


@pytest.mark.parametrize("value, overlap", [(0.69, "overlap"), (0.71, "apart"), (0.29, "apart")])
def test_intervals_apart_or_not(tmp_path, value, overlap):
    pair = results(tmp_path, ("a", None, 0.5), ("b", None, value))
    (group,) = report_data.summarise(pair, [report_data.checkpoint_of(r) for r in pair])
    assert group.rows[0].overlap == overlap


def test_three_checkpoints_are_not_compared_and_a_missing_one_leaves_a_gap(tmp_path):
    few = results(tmp_path, ("a", None, 0.5), ("b", None, 0.9), ("c", None, 0.9))
    few[2] = replace(few[2], data={**few[2].data, "dataset": "other"})
    first, other = report_data.summarise(few, [report_data.checkpoint_of(r) for r in few])
    assert first.rows[0].overlap == "" and first.rows[0].values[2] is None
    assert [v is None for v in other.rows[0].values] == [True, True, False]


def test_bars_of_other_numbers_run_over_the_row(tmp_path):
    pair = results(tmp_path, ("a", None, 5.0), ("b", None, 6.8))
    (group,) = report_data.summarise(pair, [report_data.checkpoint_of(r) for r in pair])
    bars = [v.bar for v in group.rows[0].values]
    assert bars == [Bar(0.0, 10.0, 5.0), Bar(90.0, 10.0, 95.0)]
    (alone,) = report_data.summarise(pair[:1], [report_data.checkpoint_of(pair[0])])
    assert alone.rows[0].values[0].bar is None and alone.rows[0].values[0].interval


def test_counts_and_nan_rate_have_no_row(tmp_path):
    (one,) = results(tmp_path, ("a", None, 0.5), nan_rate=0.0, captions=50)
    (group,) = report_data.summarise([one], [report_data.checkpoint_of(one)])
    assert [row.metric for row in group.rows] == ["acc1"]


def test_numbers_of_a_table_have_four_decimals():
    shown = report_data.value(0.0008682, 1.111e-07, 123.456)
    assert (shown.text, shown.interval) == ("0.0009", "0.0000 – 123.4560")
    assert report_data.value(7, math.nan, math.nan).text == "7"


def test_the_newest_of_each_run_and_all_of_few(tmp_path):
    steps = [("r-step_1", 1, 0.2), ("r-step_10", 10, 0.4), ("r-step_9", 9, 0.3), ("q", None, 0.5)]
    many = results(tmp_path, *steps)
    assert [r.model for r in report_data.newest(many)] == ["r-step_10", "q"]
    assert report_data.side_by_side(many) == many
    more = many + results(tmp_path / "x", ("r-step_11", 11, 0.6))
    assert [r.model for r in report_data.side_by_side(more)] == ["q", "r-step_11"]


def test_a_result_given_twice_stands_once_the_last(tmp_path):
    a, b = results(tmp_path, ("a", 1, 0.5), ("a", 1, 0.6))
    assert report_data.last_given([a, b]) == [b]


def test_results_of_a_data_set_stand_together(tmp_path):
    names = [("s", "x"), ("t", "x"), ("s", "y"), ("s", "x")]
    kept = [
        store(tmp_path / str(i), made_up({"m": 0.1}, dataset=d), kind, f"m{i}")
        for i, (d, kind) in enumerate(names)
    ]
    order = [r.model for r in report_data.by_data_set(kept)]
    assert order == ["m0", "m3", "m2", "m1"]


def test_facts_of_a_checkpoint(tmp_path):
    a, b = results(tmp_path, ("a", 1, 0.5), ("a", 1, 0.6))
    b.data["precision"] = "bf16"
    found = report_data.facts([a, b])
    assert found["precision"] == "fp32 / bf16" and found["step"] == "1"
    assert found["versions"] == "clipkit 0.1.0, torch 2.15" and found["evaluated"] == ""


def test_main_metrics_are_the_usual_ones_else_the_first(tmp_path):
    usual = store(tmp_path, made_up({"tie_rate": 0.0, "acc5": 1.0, "acc1": 0.5}), "x")
    assert report_data.main_metrics(usual) == ["acc1"]
    others = {"tie_rate": 0.0, "p": 1.0, "q": 1.0, "r": 1.0, "s": 1.0}
    assert report_data.main_metrics(store(tmp_path, made_up(others), "x")) == ["p", "q", "r"]


def test_a_level_of_chance_comes_from_the_details(tmp_path):
    one = store(tmp_path, made_up({"acc": 0.7}, details={"chance": {"acc": 0.25}}), "x")
    assert report_data.with_chance(one, "acc").chance == "0.2500"
    assert report_data.with_chance(one, "n").chance == ""


def test_a_trend_runs_over_the_steps_of_one_run(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "trend", lambda panels: drawn.append(panels) or "picture")
    steps = [("r-step_10", 10, 0.4), ("r-step_9", 9, 0.3), ("q", 5, 0.5), ("p", None, 0.1)]
    (trend,) = report_data.trends(results(tmp_path, *steps))
    assert (trend.dataset, trend.kind, trend.metrics) == ("made", "zero_shot", "acc1")
    (((metric, (line,)),),) = drawn
    assert metric == "acc1" and line.label == "r"
    assert line.steps == [9, 10] and line.values == [0.3, 0.4]
    assert line.low == pytest.approx([0.2, 0.3]) and line.high == pytest.approx([0.4, 0.5])


def test_no_trend_of_single_steps(tmp_path):
    steps = [("r-step_9", 9, 0.4), ("q", 5, 0.5), ("p", None, 0.1)]
    assert report_data.trends(results(tmp_path, *steps)) == []
