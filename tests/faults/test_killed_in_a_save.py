"""Rows 2 and 15: a life ends at each point of a save, also while training goes on meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipkit.checkpoint.verify import list_checkpoints, newest_valid, step_of, verify_checkpoint
from clipkit.faults import POINTS
from tests.engine.inprocess import fit_in_pool
from tests.faults.conftest import Reference
from tests.faults.harness import (
    assert_exact_coverage,
    assert_same_weights,
    events,
    history,
    life,
)


def joins(ranks, run: Path, reference: Reference, place: str) -> None:  # type: ignore[no-untyped-def]
    """The next life ends the run as if nothing had happened, and nothing of the dead is left."""
    overrides = [place, "data.workers=0", "run.resume=auto"]
    ranks(2).run(fit_in_pool, str(reference.config), overrides)
    assert history(run) == history(reference.run)
    assert_exact_coverage(run)
    assert_same_weights(run, reference.run)
    names = {p.name for p in (run / "checkpoints").iterdir()}
    assert names == {"step_00000030", "step_00000040", "latest", ".writer"}


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_killed_at_a_point_of_a_save(
    tmp_path: Path, reference: Reference, ranks, point: str
) -> None:  # type: ignore[no-untyped-def]
    run, place = tmp_path / "r", f"run.dir={tmp_path}"
    keep = "checkpoint.keep=1" if point == "prune" else "checkpoint.keep=2"
    first = life(reference.config, place, keep, fault=f"save@0:20:{point}")
    assert first.status != 0
    newest, skipped = newest_valid(run)
    assert newest is not None and not skipped
    assert step_of(newest) == (20 if point in ("latest", "prune") else 10)
    joins(ranks, run, reference, place)


@pytest.mark.slow
def test_the_other_rank_killed_in_its_part(tmp_path: Path, reference: Reference, ranks) -> None:  # type: ignore[no-untyped-def]
    run, place = tmp_path / "r", f"run.dir={tmp_path}"
    first = life(reference.config, place, fault="save@1:20:tensor")
    assert first.status != 0
    assert [step_of(p) for p in list_checkpoints(run)] == [10]
    assert list((run / "checkpoints").glob(".step_00000020.tmp-*"))  # until somebody saves again
    joins(ranks, run, reference, place)


@pytest.mark.slow
def test_saves_at_every_step_do_not_overlap(tmp_path: Path, reference: Reference, ranks) -> None:  # type: ignore[no-untyped-def]
    run, place = tmp_path / "r", f"run.dir={tmp_path}"
    every = "checkpoint.every=1"
    first = life(reference.config, place, every, fault="kill@1:25")
    assert first.status != 0
    newest, skipped = newest_valid(run)
    assert newest is not None and not skipped and step_of(newest) >= 23
    for folder in list_checkpoints(run):
        verify_checkpoint(folder)
    saved = [event["step"] for event in events(run, "saved")]
    assert saved == list(range(1, len(saved) + 1))
    joins(ranks, run, reference, place)
