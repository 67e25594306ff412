"""The loop: step, then log, save and evaluate when due."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Literal

from clipkit import faults
from clipkit.checkpoint.verify import list_checkpoints
from clipkit.contracts import Batch
from clipkit.engine.bad_sample_report import BadSampleList, check_share
from clipkit.engine.chunk_size import settle_chunk_size
from clipkit.engine.evaluation import evaluate, judged
from clipkit.engine.pace import Pace
from clipkit.engine.preemption import StopSignal
from clipkit.engine.report import report, report_bad_samples
from clipkit.engine.rollback import watch_over
from clipkit.engine.run import Run, due
from clipkit.engine.saving import save, save_due, wants_save
from clipkit.engine.step import Asks, StepResult
from clipkit.errors import CheckpointError

Outcome = Literal["done", "preempted"]


def fit(run: Run) -> Outcome:
    """Train to `total_steps` or until asked to stop. Returns "done" or "preempted".

    Raises:
        ClipkitError: Too many bad samples, bad batches beyond the guard's patience, or no
            checkpoint could be written at the end.
    """
    first, pace = run.step, Pace(run.world.device)
    run.loader.bad.sink = BadSampleList(run.folder, run.world.rank)
    with StopSignal() as signals, run.watchdog, run.log.live(run.step):
        with closing(iter(run.loader)) as batches:  # its workers end here, whatever happens
            # stopped where one was due
            if owes_evaluation(run) and not evaluate(run, signals.asked):
                return preempted(run)
            while run.step < run.total_steps:
                result = take_step(run, batches, pace, signals)
                seen = (run.step - first) * run.global_batch_size
                check_share(run.loader.bad, result.bad_samples, seen, run.world)
                watch_over(run, result)
                report(run, result, pace, seen)
                if save_due(run, result):
                    save(run)
                if result.stop and run.step < run.total_steps:
                    return preempted(run)
                # after the save: it is long, and a signal may end it
                if owes_evaluation(run) and not evaluate(run, signals.asked):
                    return preempted(run)
        return finish(run, signals, trained=run.step > first)


def take_step(run: Run, batches: Iterator[Batch], pace: Pace, signals: StopSignal) -> StepResult:
    """Train on the next batch, and tell the others what this rank was asked to do."""
    run.watchdog.at("data", run.step)
    batch = pace.fetch(batches)
    run.watchdog.at("step", run.step)
    faults.strike(run.world.rank, run.step)
    settle_chunk_size(run, batch)
    asks = Asks(signals.received, wants_save(run), run.loader.bad.total)
    before_s = pace.elapsed()
    result = run.train_step(batch, run.step, run.schedule(run.step), asks)
    run.watchdog.busy(before_s + result.own_s)
    run.step += 1
    return result


def owes_evaluation(run: Run) -> bool:
    """Whether an evaluation is due here and not done; the last of a run follows its last save."""
    due_here = due(run.eval_every, run.step) and run.step < run.total_steps
    return due_here and run.evaluated < run.step


def preempted(run: Run) -> Outcome:
    """Leave with everything on disk; signals that come again meanwhile change nothing."""
    if run.saved < run.step:
        save(run)
    run.watchdog.at("save", run.step)
    try:
        run.saver.wait()
    except CheckpointError:  # told as an alarm; the next life goes on from the one before
        left = run.world.is_main and bool(list_checkpoints(run.folder))
        if not run.world.broadcast_int(int(left)):
            raise
    run.status.finish("preempted", step=run.step, exit_status=0)
    run.log.say(f"stopped by a signal after step {run.step}; resume with run.resume=auto")
    return "preempted"


def finish(run: Run, signals: StopSignal, *, trained: bool) -> Outcome:
    """The last evaluation, unless an earlier life has done it, and the sum of bad samples.

    What was trained is on disk before: an evaluation that fails ends the process.
    """
    run.watchdog.at("save", run.step)
    run.saver.wait()
    owed = trained or not run.world.broadcast_int(int(run.world.is_main and judged(run)))
    if owed and not evaluate(run, signals.asked):
        return preempted(run)
    report_bad_samples(run)
    return "done"
