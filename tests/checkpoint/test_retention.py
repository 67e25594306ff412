"""What stays: only what verifies counts, and the reasons are told."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from clipkit.checkpoint.retention import Retention, explain, metric_of, prune, read_scores
from clipkit.checkpoint.verify import list_checkpoints, newest_valid, step_of
from tests.fixtures_checkpoint import write_run

STEPS = [10, 20, 30, 40, 50]


def kept(retention: Retention, bad: tuple[int, ...] = (), **scores: float) -> list[int]:
    values = {int(k[1:]): v for k, v in scores.items()}
    return sorted(retention.reasons(STEPS, lambda s: s not in bad, values))


@pytest.mark.parametrize(
    ("retention", "bad", "expected"),
    [
        (Retention(2), (), [40, 50]),
        (Retention(1), (), [50]),
        (Retention(9), (), STEPS),
        (Retention(2), (50,), [30, 40, 50]),
        (Retention(2), (30, 50), [20, 30, 40, 50]),
        (Retention(2), (10, 20, 30, 40), STEPS),
        (Retention(2, 20), (), [20, 40, 50]),
        (Retention(1, 10), (), STEPS),
    ],
)
def test_newest_and_multiples(
    retention: Retention, bad: tuple[int, ...], expected: list[int]
) -> None:
    assert kept(retention, bad) == expected


def test_never_fewer_valid_ones_than_asked_for_while_there_are_some() -> None:
    for bad in itertools.chain.from_iterable(itertools.combinations(STEPS, n) for n in range(6)):
        for keep in (1, 2, 3):
            stay = kept(Retention(keep), bad)
            valid = [s for s in STEPS if s not in bad]
            assert len([s for s in stay if s not in bad]) == min(keep, len(valid))


def test_the_best_stays_and_a_damaged_best_does_not_count() -> None:
    best, scores = Retention(1, best="a/b"), {"s10": 0.3, "s20": 0.9, "s30": 0.5}
    assert kept(best, **scores) == [20, 50]
    assert kept(best, bad=(20,), **scores) == [30, 50]
    assert kept(Retention(1, best="a/b", best_mode="min"), **scores) == [10, 50]
    assert kept(best, s10=0.3, s20=0.3) == [20, 50]  # of equal ones the newer
    assert kept(best, s50=0.3) == [50]
    assert kept(best) == [50]


def test_reasons() -> None:
    stay = Retention(1, 20, "a/b").reasons(STEPS, lambda s: s != 50, {10: 1.0, 40: 2.0})
    assert stay == {
        50: "not valid, too few newer ones are", 40: "newest, best", 20: "every 20",
    }  # fmt: skip
    stay = Retention(1, 20, "a/b").reasons(STEPS, lambda s: True, {10: 1.0})
    assert stay == {50: "newest", 40: "every 20", 20: "every 20", 10: "best a/b"}


def test_few_are_not_read() -> None:
    def read(step: int) -> bool:
        raise AssertionError

    assert len(Retention(5).reasons(STEPS, read, {1: 1.0})) == 5


def test_metric_of() -> None:
    results = {"a": {"b/c": 1, "n": float("nan")}, "a/b": {"d": 2.5}}
    assert (metric_of(results, "a/b/c"), metric_of(results, "a/b/d")) == (1.0, 2.5)
    assert metric_of(results, "a/n") is None and metric_of(results, "x") is None


def test_pruning_counts_only_what_it_has_read(tmp_path: Path) -> None:
    folders = {step: write_run(tmp_path, step) for step in (1, 2, 3, 4)}
    with open(folders[4] / "rank_00000.safetensors", "r+b") as file:
        file.seek(-3, 2)
        file.write(b"\xff")
    gone = prune(tmp_path, Retention(2), {})
    assert [step_of(p) for p in gone] == [1]
    assert [step_of(p) for p in list_checkpoints(tmp_path)] == [2, 3, 4]
    assert newest_valid(tmp_path)[0] == folders[3]


def test_later_steps_neither_count_nor_go(tmp_path: Path) -> None:
    for step in (1, 2, 3, 9):
        write_run(tmp_path, step)
    stay, go = explain(tmp_path, Retention(1), {}, until=3)
    assert [step_of(p) for p in stay] == [3] and [step_of(p) for p in go] == [1, 2]


def test_scores_are_those_the_checkpoints_tell(tmp_path: Path) -> None:
    folders = [write_run(tmp_path, step) for step in (1, 2, 3)]
    told = [{"1": 0.1}, {"1": 0.1, "2": 0.2}, "nonsense"]
    for folder, values in zip(folders, told):
        (folder / "state.json").write_text(json.dumps({"scores": {"a/b": values, "x": {"7": 1}}}))
    assert read_scores(tmp_path, "a/b") == {1: 0.1, 2: 0.2}
    assert read_scores(tmp_path, None) == {} == read_scores(tmp_path, "none")
