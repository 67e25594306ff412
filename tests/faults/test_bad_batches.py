"""Rows 8 and 9: NaN in the loss or the gradients of one rank, and a loss that jumps."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.e2e.runs import metrics
from tests.engine.inprocess import fit_in_pool
from tests.faults.harness import (
    assert_exact_coverage,
    assert_same_weights,
    events,
    fit_with_fault,
    history,
    life,
    saved_tensors,
    told,
    write_config,
)

EMA = [{"kind": "ema", "decay": 0.9}]
BRIEF = ["data.workers=0", "optim.schedule=constant", "train.total_steps=20"]


def in_a_row(kind: str, rank: int, first: int, count: int) -> str:
    return ",".join(f"{kind}@{rank}:{step}" for step in range(first, first + count))


def checkpoint(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step:08d}"


@pytest.mark.parametrize("kind", ["nan_loss", pytest.param("nan_grad", marks=pytest.mark.slow)])
def test_one_rank_s_nan_is_skipped_by_all_and_changes_nothing(
    kind: str, tmp_path: Path, ranks
) -> None:  # type: ignore[no-untyped-def]
    config = write_config(tmp_path, addons=EMA, checkpoint={"every": 1, "keep": 9})
    overrides = [*BRIEF, "train.total_steps=8"]
    ranks(2).run(fit_with_fault, str(config), overrides, f"{kind}@1:5")
    run = tmp_path / "runs" / "r"
    lines = metrics(run)
    assert [m["train/skipped"] for m in lines] == [0, 0, 0, 0, 0, 1, 0, 0]
    assert [m["train/skipped_total"] for m in lines] == [0, 0, 0, 0, 0, 1, 1, 1]
    assert_same_weights(checkpoint(run, 5), checkpoint(run, 6))
    assert any("exp_avg" in key for key in saved_tensors(checkpoint(run, 5)))
    assert any("addon" in key for key in saved_tensors(checkpoint(run, 5)))
    with pytest.raises(AssertionError):
        assert_same_weights(checkpoint(run, 6), checkpoint(run, 7))
    assert all(math.isfinite(m["train/logit_scale"]) for m in lines)
    assert [e["step"] for e in events(run, "nonfinite")] == [6]
    assert_exact_coverage(run, 8)


def test_after_three_in_a_row_the_weights_go_back_and_the_data_go_on(tmp_path: Path, ranks) -> None:  # type: ignore[no-untyped-def]
    config = write_config(tmp_path, addons=EMA, checkpoint={"keep": 9})
    fault = in_a_row("nan_loss", 0, 13, 3)
    ranks(2).run(fit_with_fault, str(config), [*BRIEF, "run.name=straight"], fault)
    straight = tmp_path / "runs" / "straight"
    (event,) = events(straight, "rolled_back")
    assert event["step"] == 16 and event["checkpoint"] == "step_00000010" and event["alarm"]
    assert_same_weights(checkpoint(straight, 10), checkpoint(straight, 16))
    assert_exact_coverage(straight, 20)
    assert [m["train/skipped"] for m in metrics(straight)][12:17] == [0, 1, 1, 1, 0]
    # stopped amid the bad batches, the next life counts on and comes to the same
    stopped = [*BRIEF, "run.name=stopped"]
    ranks(2).run(fit_with_fault, str(config), stopped, f"{fault},term@1:14")
    ranks(2).run(fit_with_fault, str(config), [*stopped, "run.resume=auto"], fault)
    assert history(tmp_path / "runs" / "stopped") == history(straight)
    assert_same_weights(tmp_path / "runs" / "stopped", straight)


def test_without_a_checkpoint_bad_batches_are_skipped_up_to_a_limit(tmp_path: Path, ranks) -> None:  # type: ignore[no-untyped-def]
    config = write_config(tmp_path)
    overrides = [*BRIEF, "train.total_steps=9", "guard.rollbacks=2"]
    ranks(2).run(fit_with_fault, str(config), overrides, in_a_row("nan_loss", 0, 1, 7))
    run = tmp_path / "runs" / "r"
    assert [e["step"] for e in events(run, "no_rollback")] == [4, 7]
    assert not events(run, "rolled_back")
    assert [m["train/skipped_total"] for m in metrics(run)] == [0, 1, 2, 3, 4, 5, 6, 7, 7]
    overrides = [*overrides, "run.name=never_finite"]
    with pytest.raises(AssertionError, match="3 bad batches in a row .* after 2 roll-backs"):
        ranks(2).run(fit_with_fault, str(config), overrides, in_a_row("nan_loss", 0, 0, 9))


@pytest.mark.slow
def test_a_run_that_rolls_back_too_often_ends(tmp_path: Path, ranks) -> None:  # type: ignore[no-untyped-def]
    config = write_config(tmp_path, guard={"rollbacks": 1, "nonfinite": 2})
    fault = in_a_row("nan_loss", 1, 12, 8)
    with pytest.raises(AssertionError, match="after 1 roll-backs; .*lower optim.lr"):
        ranks(2).run(fit_with_fault, str(config), BRIEF, fault)
    assert [e["step"] for e in events(tmp_path / "runs" / "r", "rolled_back")] == [14]


@pytest.mark.slow
def test_a_run_given_up_says_so_in_one_line(tmp_path: Path) -> None:
    config = write_config(tmp_path, guard={"rollbacks": 0})
    found = life(config, fault=in_a_row("nan_loss", 1, 12, 3))
    (line,) = told(found.err)
    assert "in a row (nonfinite) at step 15" in line
    assert found.status != 0 and 'File "' not in found.err.split(line)[0]


SPIKE = ["guard.spike_window=40", "train.total_steps=24", "data.workers=0"]


@pytest.mark.parametrize(
    ("policy", "skipped", "rolled"),
    [
        pytest.param("warn", 0, 0, marks=pytest.mark.slow),
        pytest.param("skip", 1, 0, marks=pytest.mark.slow),
        ("rollback", 1, 1),
    ],
)
def test_a_loss_ten_times_as_high_is_seen_in_its_own_step(
    policy: str, skipped: int, rolled: int, tmp_path: Path, ranks
) -> None:  # type: ignore[no-untyped-def]
    config = write_config(tmp_path, guard={"spike": policy})
    ranks(2).run(fit_with_fault, str(config), SPIKE, "spike@*:21:10")
    run = tmp_path / "runs" / "r"
    (event,) = events(run, "spike")
    assert event["step"] == 22 and event["policy"] == policy and event["alarm"]
    assert metrics(run)[-1]["train/skipped_total"] == skipped
    assert [e["checkpoint"] for e in events(run, "rolled_back")] == ["step_00000020"] * rolled
    assert_exact_coverage(run, 24)


@pytest.mark.slow
def test_where_nothing_is_wrong_the_guard_changes_nothing(tmp_path: Path, ranks) -> None:  # type: ignore[no-untyped-def]
    config = write_config(tmp_path)
    off = ["guard.spike=off", "guard.nonfinite=1000"]
    for name, more in {"with": ["guard.spike=rollback"], "without": off}.items():
        overrides = [*SPIKE, f"run.name={name}", *more]
        ranks(2).run(fit_in_pool, str(config), overrides)
    watched, free = tmp_path / "runs" / "with", tmp_path / "runs" / "without"
    assert history(watched) == history(free)
    assert_same_weights(watched, free)
