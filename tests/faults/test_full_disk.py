"""Row 5: a disk that is full, or a limit of file sizes: training goes on, the next save works."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from clipkit.checkpoint.saver import Saver
from clipkit.checkpoint.verify import list_checkpoints, step_of, verify_checkpoint
from clipkit.dist.group import World
from tests.engine.inprocess import fit_in_pool
from tests.faults.conftest import Reference
from tests.faults.harness import (
    assert_same_weights,
    events,
    fit_with_fault,
    history,
    life,
    status,
    told,
)


def check(run: Path, reference: Reference, lost: int, rank: int, why: str) -> None:
    """One save of the run was lost; the run was not."""
    assert history(run) == history(reference.run)
    assert_same_weights(run, reference.run)
    (event,) = events(run, "save_failed")
    assert event["step"] == lost and event["alarm"] and f"rank {rank}: {why}" in event["text"]
    assert [e["step"] for e in events(run, "saved")] == [s for s in (10, 20, 30, 40) if s != lost]
    assert [step_of(p) for p in list_checkpoints(run)] == [30, 40]
    for folder in list_checkpoints(run):
        verify_checkpoint(folder)
    assert not list((run / "checkpoints").glob(".step*"))
    assert status(run)["alarms"]["count"] == 1


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_full_disk_of_one_rank(tmp_path: Path, reference: Reference, ranks, rank: int) -> None:  # type: ignore[no-untyped-def]
    overrides = [f"run.dir={tmp_path}", "data.workers=0"]
    outcomes = ranks(2).run(
        fit_with_fault, str(reference.config), overrides, f"disk_full@{rank}:20"
    )
    assert outcomes == ["done"] * 2
    check(tmp_path / "r", reference, 20, rank, "No space left on device")


def fit_with_limit(world: World, config: str, overrides: list[str]) -> str:
    """While the save of step 20 is written, rank 0 may write no file as large as its part."""
    save, limits = Saver.save, resource.getrlimit(resource.RLIMIT_FSIZE)

    def limited(self: Saver, step: int, **parts: Any) -> None:
        self._settle()
        tight = step == 20 and world.is_main
        soft = 9_000_000 if tight else limits[0]
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, limits[1]))
        save(self, step, **parts)

    with mock.patch.object(Saver, "save", limited):
        return fit_with_fault(world, config, overrides, "")


@pytest.mark.slow
def test_the_system_refuses_to_write(tmp_path: Path, reference: Reference, ranks) -> None:  # type: ignore[no-untyped-def]
    overrides = [f"run.dir={tmp_path}", "data.workers=0"]
    outcomes = ranks(2).run(fit_with_limit, str(reference.config), overrides)
    assert outcomes == ["done"] * 2
    check(tmp_path / "r", reference, 20, 0, "File too large")


@pytest.mark.slow
def test_in_the_end_the_user_is_told_and_nothing_is_lost(
    tmp_path: Path, reference: Reference, ranks
) -> None:  # type: ignore[no-untyped-def]
    run, place = tmp_path / "r", f"run.dir={tmp_path}"
    full = life(reference.config, place, fault="disk_full@1:40", timeout=180)
    (line,) = told(full.err)
    assert full.status != 0 and "Traceback" not in full.err.split(line)[0]  # torchrun's is later
    assert "step_00000040 was not written (rank 1: No space left on device)" in line
    assert [step_of(p) for p in list_checkpoints(run)] == [20, 30]
    assert status(run)["state"] == "failed"
    overrides = [place, "data.workers=0", "run.resume=auto"]
    ranks(2).run(fit_in_pool, str(reference.config), overrides)
    assert history(run) == history(reference.run)
    assert_same_weights(run, reference.run)


def fit_without_patience(world: World, config: str, overrides: list[str], fault: str) -> str:
    """As `fit_with_fault`; a save that failed is not tried again."""
    with mock.patch("clipkit.checkpoint.saver.RETRY_AFTER_S", ()):
        return fit_with_fault(world, config, overrides, fault)


@pytest.mark.slow
def test_a_preempted_run_goes_on_from_the_checkpoint_before(
    tmp_path: Path, reference: Reference, ranks
) -> None:  # type: ignore[no-untyped-def]
    overrides, run = [f"run.dir={tmp_path}", "data.workers=0", "run.resume=auto"], tmp_path / "r"
    config, fault = str(reference.config), "term@1:14,disk_full@0:15"
    assert ranks(2).run(fit_without_patience, config, overrides, fault) == ["preempted"] * 2
    assert [step_of(p) for p in list_checkpoints(run)] == [10]
    assert status(run)["state"] == "preempted" and len(events(run, "save_failed")) >= 1
    assert ranks(2).run(fit_in_pool, config, overrides) == ["done"] * 2
    assert history(run) == history(reference.run)
    assert_same_weights(run, reference.run)
