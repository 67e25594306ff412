"""When a run saves, what its checkpoint says, and how it goes on from one."""

from __future__ import annotations

import time
from pathlib import Path

from clipkit.checkpoint.remote import fetch_newest
from clipkit.checkpoint.verify import checkpoint_folder, newest_valid, step_of
from clipkit.checkpoint.write import recover
from clipkit.data.bad_samples import BadTotals
from clipkit.dist.group import World
from clipkit.engine.bad_sample_report import shared_totals
from clipkit.engine.chunk_size import keep_chunk_size
from clipkit.engine.run import Run, due
from clipkit.engine.snapshot import addon_scalars, restore, slices
from clipkit.engine.step import StepResult
from clipkit.errors import CheckpointError, ClipkitError


def wants_save(run: Run) -> bool:
    """Whether rank 0's clock asks for a checkpoint."""
    if not (run.save_minutes and run.world.is_main):
        return False
    return time.monotonic() - run.saved_at >= 60 * run.save_minutes


def save_due(run: Run, result: StepResult) -> bool:
    """Whether a checkpoint follows the step just done."""
    done = run.step == run.total_steps
    return due(run.save_every, run.step) or done or result.stop or result.save


def save(run: Run) -> None:
    """Write a checkpoint of everything a resumed run needs."""
    run.watchdog.at("save", run.step)
    bad = shared_totals(run.loader.bad, run.world).as_json()
    state = {
        "step": run.step,
        "samples_seen": run.step * run.global_batch_size,
        "optimizer_steps": run.strategy.optimizer_steps(),
        "loader": {**run.loader.state_dict(), "step": run.step, "bad": bad},
        "addons": addon_scalars(run.addons),
        "guard": run.guard.state_dict(),
        "auto_chunk": run.auto_chunk,
        "results": run.results,
        "results_step": run.evaluated,
    }
    run.saver.save(
        run.step,
        slices=slices(run.strategy, run.addons),
        state=state,
        model_config=run.model_config,
    )
    run.saved, run.saved_at = run.step, time.monotonic()


def pick_checkpoint(
    folder: Path, world: World, remote: str | None = None
) -> tuple[Path | None, list[str]]:
    """Where to go on from: rank 0 looks, all agree.

    Args:
        folder: The run folder.
        world: The ranks.
        remote: `checkpoint.remote`; looked into where the run folder has no valid checkpoint.

    Returns:
        The newest checkpoint that verifies, None where there is none at all; on rank 0 what to say
        about it: newer ones that were passed over, where it came from.

    Raises:
        CheckpointError: There are checkpoints, and none is valid: never silently start anew.
    """
    newest: Path | None = None
    notes: list[str] = []
    if world.is_main:
        recover(folder)
        newest, notes = newest_valid(folder)
    if world.is_main and newest is None and remote is not None:
        try:
            newest, passed_over = fetch_newest(remote, folder)
            notes = [*notes, *passed_over, *([f"fetched {newest} from {remote}"] if newest else [])]
        except ClipkitError as error:  # told by all ranks, below
            notes = [str(error), *notes]
    found = world.broadcast_int(step_of(newest) if newest else -2 if notes else -1)
    if found == -2:
        reason = f" ({notes[0]})" if notes else ""
        raise CheckpointError(
            f"{folder}: no checkpoint is valid{reason}; restore one or set another run.name"
        )
    return (checkpoint_folder(folder, found) if found >= 0 else None), notes


def resume(run: Run, folder: Path) -> None:
    """Continue from a verified checkpoint."""
    reader = restore(folder, run.strategy, run.addons)
    run.loader.load_state_dict(reader.state["loader"])
    run.loader.bad.before = BadTotals.from_json(reader.state["loader"].get("bad"))
    run.step = run.saved = int(reader.state["step"])
    run.guard.load_state_dict(reader.state.get("guard", {}))
    keep_chunk_size(run, reader.state.get("auto_chunk"))
    run.results = reader.state.get("results", {})
    run.evaluated = int(reader.state.get("results_step", run.step))
