"""Back to the last good weights, on with the data: what the guard asks for after bad batches.

Weights, moments and add-on state become those of a checkpoint; the step counter and with it the
data position stay, so the batches in between are passed over and the order of the data stays
f(step).
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from clipkit.checkpoint.verify import (
    checkpoint_folder,
    list_checkpoints,
    step_of,
    verify_checkpoint,
)
from clipkit.engine.run import Run
from clipkit.engine.saving import save
from clipkit.engine.snapshot import restore
from clipkit.engine.step import StepResult
from clipkit.errors import CheckpointError, TrainingError


def watch_over(run: Run, result: StepResult) -> None:
    """Tell what is wrong with the step just done, and roll back where the guard says so.

    Raises:
        TrainingError: The guard's roll-backs are used up.
    """
    guard = run.guard
    verdict = guard.after(result)
    if guard.trouble == "spike":
        what = "all ranks skipped this batch" if not result.applied else "applied all the same"
        text = f"the loss jumped to {result.loss:.4g}; {what}"
        run.log.event("spike", run.step, text, alarm=True, loss=result.loss, policy=guard.spike)
    elif guard.trouble:
        text = "loss or gradient not finite; all ranks skipped this batch"
        run.log.event("nonfinite", run.step, text, alarm=True, in_a_row=guard.in_a_row)
    if verdict == "roll back":
        roll_back(run)


def roll_back(run: Run) -> None:
    """Take the newest valid checkpoint from before the trouble, and save at once.

    Where there is none, training goes on without the bad batches; that counts as a roll-back, so
    a run that is never finite ends.

    Raises:
        TrainingError: The guard's roll-backs are used up.
    """
    guard = run.guard
    why = f"{guard.in_a_row} bad batch{'es' * (guard.in_a_row > 1)} in a row ({guard.trouble})"
    run.watchdog.at("rollback", run.step)
    with contextlib.suppress(CheckpointError):  # told when it failed; the ones before it are there
        run.saver.wait(())
    number = last_good(run.folder, run.step - guard.in_a_row) if run.world.is_main else -1
    number = run.world.broadcast_int(number)
    if guard.exhausted:
        raise TrainingError(
            f"{run.folder}: {why} at step {run.step}, after {guard.done} roll-backs; look at the "
            f"data, lower optim.lr, or raise guard.rollbacks and go on with run.resume=auto"
        )
    guard.rolled_back()
    if number < 0:
        text = f"{why}, and no valid checkpoint to roll back to; they are skipped"
        run.log.event("no_rollback", run.step, text, alarm=True)
        return
    folder = checkpoint_folder(run.folder, number)
    restore(folder, run.strategy, run.addons)
    text = f"{why}; weights of {folder.name}, the data in between is passed over"
    run.log.event("rolled_back", run.step, text, alarm=True, checkpoint=folder.name)
    save(run)


def last_good(folder: Path, step: int) -> int:
    """Step of the newest checkpoint that verifies, saved after at most `step` steps if possible.

    One saved while batches were being skipped holds the same weights as when that began, but the
    ones before it may be better. -1: none verifies.
    """
    newest_first = list(reversed(list_checkpoints(folder)))
    before = [c for c in newest_first if step_of(c) <= step]
    for candidate in [*before, *(c for c in newest_first if c not in before)]:
        try:
            verify_checkpoint(candidate)
        except CheckpointError:
            continue
        return step_of(candidate)
    return -1
