"""Row 10: a signal to one rank stops all after the same step, saved; the next life joins."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from unittest import mock

import pytest

from clipkit.checkpoint.saver import Saver
from clipkit.checkpoint.verify import list_checkpoints, verify_checkpoint
from clipkit.config.load import load_config
from clipkit.contracts import Batch, Outputs
from clipkit.dist.group import World
from clipkit.engine.build import build_run
from clipkit.engine.trainer import fit
from tests.e2e.runs import finish
from tests.engine.inprocess import fit_in_pool
from tests.faults.conftest import Reference
from tests.faults.harness import (
    assert_exact_coverage,
    assert_same_weights,
    fit_with_fault,
    history,
    launch,
    life,
    status,
    wait_for_step,
)


def fit_signalled_while_saving(world: World, config: str, overrides: list[str], fault: str) -> str:
    """As `fit_with_fault`; the signal comes again while the checkpoint is being written."""
    save = Saver.save

    def again(self: Saver, step: int, **parts: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        save(self, step, **parts)  # type: ignore[arg-type]
        os.kill(os.getpid(), signal.SIGTERM)

    with mock.patch.object(Saver, "save", again):
        return fit_with_fault(world, config, overrides, fault)


@pytest.mark.parametrize("fault", ["term@1:17", pytest.param("usr1@0:17", marks=pytest.mark.slow)])
def test_a_signal_to_one_rank_stops_all_after_its_step(
    fault: str, tmp_path: Path, reference: Reference, ranks
) -> None:  # type: ignore[no-untyped-def]
    overrides = [f"run.dir={tmp_path}", "data.workers=0"]
    config, run = str(reference.config), tmp_path / "r"
    assert ranks(2).run(fit_with_fault, config, overrides, fault) == ["preempted"] * 2
    assert history(run) == history(reference.run)[:18]
    assert list_checkpoints(run)[-1].name == "step_00000018"
    assert status(run)["state"] == "preempted" and status(run)["step"] == 18
    ranks(2).run(fit_in_pool, config, [*overrides, "run.resume=auto"])
    assert history(run) == history(reference.run)
    assert_exact_coverage(run)
    assert_same_weights(run, reference.run)


def fit_signalled_while_evaluating(
    world: World, config: str, overrides: list[str], step: int
) -> str:
    """Rank 1 is told to stop in a forward pass of the evaluation after `step`."""
    run = build_run(load_config(config, overrides), world)
    forward = run.encoder.forward

    def signalled(batch: Batch) -> Outputs:
        if world.rank == 1 and run.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(batch)

    run.encoder.forward = signalled  # type: ignore[method-assign]
    try:
        return fit(run)
    finally:
        run.encoder.forward = forward  # type: ignore[method-assign]  # no cycle: it frees the lock
        run.log.close()


@pytest.mark.parametrize("step", [20, pytest.param(40, marks=pytest.mark.slow)])
def test_a_signal_ends_an_evaluation_which_the_next_life_makes_up_for(
    step: int, tmp_path: Path, reference: Reference, ranks
) -> None:  # type: ignore[no-untyped-def]
    """In the middle, where nothing was saved, and the last one."""
    overrides = [f"run.dir={tmp_path}", "data.workers=0", "run.resume=auto", "eval.every=20"]
    overrides.append("checkpoint.every=30")
    config, run = str(reference.config), tmp_path / "r"
    assert (
        ranks(2).run(fit_signalled_while_evaluating, config, overrides, step) == ["preempted"] * 2
    )
    assert status(run)["state"] == "preempted" and status(run)["step"] == step
    assert list_checkpoints(run)[-1].name == f"step_{step:08d}"
    assert evaluations(run) == list(range(20, step, 20))
    assert ranks(2).run(fit_in_pool, config, overrides) == ["done"] * 2
    assert evaluations(run) == [20, 40]
    assert history(run) == history(reference.run)
    assert_same_weights(run, reference.run)


def evaluations(run: Path) -> list[int]:
    """Steps of which metrics.jsonl has results."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if any(key.startswith("eval/") for key in line)]


@pytest.mark.slow
def test_signals_during_the_save_change_nothing(
    tmp_path: Path, reference: Reference, ranks
) -> None:  # type: ignore[no-untyped-def]
    overrides = [f"run.dir={tmp_path}", "data.workers=0"]
    config, run = str(reference.config), tmp_path / "r"
    ended = ranks(2).run(fit_signalled_while_saving, config, overrides, "term@0:3")
    assert ended == ["preempted"] * 2
    (folder,) = list_checkpoints(run)
    verify_checkpoint(folder)
    assert folder.name == "step_00000004" and not list(run.glob("checkpoints/.*tmp*"))
    ranks(2).run(fit_in_pool, config, [*overrides, "run.resume=auto"])
    assert history(run) == history(reference.run)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_torchrun(number: int, tmp_path: Path, reference: Reference) -> None:
    run, place = tmp_path / "r", f"run.dir={tmp_path}"
    handled = ("--signals-to-handle=SIGTERM,SIGINT,SIGUSR1",)
    # each step takes a while, so that the signal comes before the end
    process = launch(reference.config, place, fault="sleep@1:5:0.3", options=handled)
    wait_for_step(run, 8, process)
    os.kill(process.pid, number)
    _, _, err = finish(process)
    stopped = len(history(run))
    assert 8 <= stopped < 40 and "stopped by a signal" in err
    assert list_checkpoints(run)[-1].name == f"step_{stopped:08d}"
    verify_checkpoint(list_checkpoints(run)[-1])
    assert status(run)["state"] == "preempted"
    second = life(reference.config, place, "run.resume=auto")
    assert second.status == 0, second.err
    assert status(run)["state"] == "done"
    assert history(run) == history(reference.run)
    assert_same_weights(run, reference.run)
