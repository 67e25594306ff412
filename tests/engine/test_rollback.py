"""Which checkpoint is taken, what is told, and that steps and data stay where they are."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clipkit.checkpoint.verify import checkpoint_folder
from clipkit.dist.group import World
from clipkit.engine import rollback
from clipkit.engine.guard import Guard
from clipkit.errors import CheckpointError, TrainingError


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A run of pretended parts at step 20; its checkpoints are empty, `bad` ones do not verify."""
    found = SimpleNamespace(folder=tmp_path, step=20, bad=set(), told=[], done=[])

    def verify(folder: Path) -> None:
        if folder.name in found.bad:
            raise CheckpointError("changed")

    def event(kind: str, step: int, text: str, *, alarm: bool, **values: Any) -> None:
        assert alarm and text
        found.told.append((kind, step))

    found.log = SimpleNamespace(event=event)
    found.watchdog = SimpleNamespace(at=lambda phase, step: None)
    found.saver = SimpleNamespace(wait=lambda pauses: found.done.append("wait"))
    found.world, found.strategy, found.addons = World(), None, []
    found.guard = Guard(nonfinite=2, rollbacks=2)
    monkeypatch.setattr(rollback, "verify_checkpoint", verify)
    monkeypatch.setattr(rollback, "restore", lambda folder, *_: found.done.append(folder.name))
    monkeypatch.setattr(rollback, "save", lambda run: found.done.append("save"))
    return found


def saved(run: Any, *steps: int) -> None:
    for step in steps:
        checkpoint_folder(run.folder, step).mkdir(parents=True)


def bad_batch(run: Any) -> None:
    run.guard.judge(0.0, False)
    rollback.watch_over(run, SimpleNamespace(applied=False, loss=0.0))  # type: ignore[arg-type]


def test_the_newest_valid_checkpoint_from_before_the_trouble(run: Any) -> None:
    saved(run, 10, 15, 17, 19)
    run.bad = {"step_00000017"}
    bad_batch(run)
    assert run.done == [] and run.told == [("nonfinite", 20)]
    bad_batch(run)
    assert run.done == ["wait", "step_00000015", "save"]
    assert run.told[1:] == [("nonfinite", 20), ("rolled_back", 20)]
    assert run.step == 20 and run.guard.done == 1 and run.guard.in_a_row == 0


def test_one_from_amid_the_trouble_is_better_than_none(run: Any) -> None:
    saved(run, 10, 19)
    run.bad = {"step_00000010"}
    bad_batch(run)
    bad_batch(run)
    assert run.done == ["wait", "step_00000019", "save"]


def test_without_one_the_batches_are_skipped_and_it_is_told(run: Any) -> None:
    for _ in range(2):
        bad_batch(run)
    assert run.done == ["wait"] and run.told[-1] == ("no_rollback", 20)
    assert run.guard.done == 1  # or a run that is never finite would not end


def test_a_save_that_failed_leaves_the_ones_before(run: Any) -> None:
    def failed(pauses: object) -> None:
        raise CheckpointError("no space left")

    saved(run, 10)
    run.saver.wait = failed
    bad_batch(run)
    bad_batch(run)
    assert run.done == ["step_00000010", "save"]


def test_one_roll_back_too_many_ends_the_run(run: Any) -> None:
    saved(run, 10)
    for _ in range(4):
        bad_batch(run)
    with pytest.raises(TrainingError, match="after 2 roll-backs"):
        for _ in range(2):
            bad_batch(run)
    assert TrainingError.exit_status == 5


def test_a_spike_that_was_applied_is_told_too(run: Any) -> None:
    for _ in range(30):
        assert run.guard.judge(1.0, True) == "apply"
        rollback.watch_over(run, SimpleNamespace(applied=True, loss=1.0))  # type: ignore[arg-type]
    assert run.told == []
    run.guard.judge(10.0, True)
    rollback.watch_over(run, SimpleNamespace(applied=True, loss=10.0))  # type: ignore[arg-type]
    assert run.told == [("spike", 20)] and run.done == []
