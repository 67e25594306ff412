"""When a run saves, what its checkpoint says, and how it goes on from one."""

from __future__ import annotations

import time
from pathlib import Path

from clipkit.data.bad_samples import BadTotals
from clipkit.engine.bad_sample_report import shared_totals
from clipkit.engine.chunk_size import keep_chunk_size
from clipkit.engine.run import Run, due
from clipkit.engine.snapshot import addon_scalars, restore, slices
from clipkit.engine.step import StepResult


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
    run.saved_at = time.monotonic()


def resume(run: Run, folder: Path) -> None:
    """Continue from a verified checkpoint."""
    reader = restore(folder, run.strategy, run.addons)
    run.loader.load_state_dict(reader.state["loader"])
    run.loader.bad.before = BadTotals.from_json(reader.state["loader"].get("bad"))
    run.step = int(reader.state["step"])
    run.guard.load_state_dict(reader.state.get("guard", {}))
    keep_chunk_size(run, reader.state.get("auto_chunk"))
    run.results = reader.state.get("results", {})
    run.evaluated = int(reader.state.get("results_step", run.step))
