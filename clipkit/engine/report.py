"""What is told of a step: the progress line and its line of metrics.jsonl."""

from __future__ import annotations

from clipkit.engine.bad_sample_report import shared_totals
from clipkit.engine.pace import Pace
from clipkit.engine.run import Run, due
from clipkit.engine.step import StepResult


def report(run: Run, result: StepResult, pace: Pace, seen: int) -> None:
    """Status, progress line and metrics of one step.

    Args:
        run: `run.step` counts this step already.
        result: Of the step.
        pace: The loop's clock.
        seen: Samples since the start of the process.
    """
    lr, rate = run.schedule(result.step), pace.rate(seen)
    text = (
        f"loss {result.loss:.3f}  lr {lr:.1e}  scale {result.logit_scale:.1f}  {rate:.0f} samples/s"
    )
    costs = pace.metrics()
    saved = {"last_checkpoint": run.saver.last.name} if run.saver.last else {}
    run.status.update(
        step=run.step,
        total_steps=run.total_steps,
        samples_per_s=rate,
        data_wait=costs["train/data_wait"],
        skipped=run.guard.skipped,
        bad_samples=run.loader.bad.before.total + result.bad_samples,
        stragglers=run.watchdog.stragglers,
        **saved,
    )
    run.log.tick(run.step, text if result.applied else f"{text}  SKIPPED")
    if not due(run.log_every, run.step) and result.applied:
        return
    terms = {f"train/{name}": value for name, value in result.terms.items()}
    for addon in run.addons if result.applied else ():
        terms |= {f"train/{name}": value for name, value in addon.metrics(result).items()}
        for text in addon.remarks():
            run.log.warn(text)
    run.log.metrics(
        run.step,
        {
            "train/loss": result.loss,
            **terms,
            "train/lr": lr,
            "train/logit_scale": result.logit_scale,
            "train/grad_norm": result.grad_norm,
            "train/samples_per_s": rate,
            "train/samples_seen": run.step * run.global_batch_size,
            "train/ids": result.ids_checksum,
            "train/skipped": int(not result.applied),
            "train/skipped_total": run.guard.skipped,
            **costs,
            **bad_sample_metrics(run, result.bad_samples),
        },
    )


def bad_sample_metrics(run: Run, bad: int) -> dict[str, int]:
    """Samples of all ranks that were replaced, by cause; a collective, left out where none was.

    Args:
        run: The run.
        bad: Sum over ranks since the start of the process.
    """
    counter = run.loader.bad
    totals = shared_totals(counter, run.world, shards=0) if bad else counter.before
    causes = {f"train/bad_samples/{cause}": count for cause, count in totals.causes.items()}
    return {"train/bad_samples": totals.total, **causes}


def report_bad_samples(run: Run) -> None:
    """At the end: samples of all ranks that were replaced, by cause and by shard."""
    totals = shared_totals(run.loader.bad, run.world)
    if totals.total:
        run.log.warn(f"{totals.text()}; replaced, and listed in bad_samples.rank*.jsonl")
        shards = totals.as_json()["shards"].items()
        worst = [{"shard": shard, "bad_samples": count} for shard, count in shards]
        causes = {f"train/bad_samples/{cause}": count for cause, count in totals.causes.items()}
        values = {"train/bad_samples": totals.total, **causes, "train/bad_shards": worst}
        run.log.metrics(run.step, values)
