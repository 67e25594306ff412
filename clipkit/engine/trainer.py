"""The loop: step, then log, evaluate and save when due."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipkit import faults
from clipkit.addons.base import AddOn
from clipkit.checkpoint.files import write_text
from clipkit.checkpoint.verify import checkpoint_folder
from clipkit.checkpoint.write import write_checkpoint
from clipkit.contracts import Batch
from clipkit.data.bad_samples import BadTotals
from clipkit.dist.group import World
from clipkit.engine.bad_sample_report import BadSampleList, check_share, shared_totals
from clipkit.engine.build_data import Loader
from clipkit.engine.cautions import zero3_note
from clipkit.engine.chunk_size import measured_chunk
from clipkit.engine.log import RunLog
from clipkit.engine.preemption import StopSignal
from clipkit.engine.snapshot import addon_scalars, restore, slices
from clipkit.engine.step import StepResult, TrainStep
from clipkit.engine.strategy import Strategy
from clipkit.eval.base import EvalResult
from clipkit.eval.embed import Embedder
from clipkit.eval.results import result_path, write_result
from clipkit.eval.suite import checkpoint_facts
from clipkit.eval.table import results_table
from clipkit.eval.tasks import Evaluator
from clipkit.optim.schedules import Schedule
from clipkit.retrieval.refinement import Refinement
from clipkit.towers.dual import FeatureEncoder


@dataclass
class Run:
    """Everything `fit` needs, built by `engine/build.py`."""

    folder: Path
    world: World
    strategy: Strategy
    train_step: TrainStep
    loader: Loader
    schedule: Schedule
    addons: list[AddOn]
    evaluators: list[Evaluator]
    encoder: FeatureEncoder
    model_config: dict[str, Any]
    log: RunLog
    total_steps: int
    global_batch_size: int
    log_every: int = 1
    eval_every: int = 0
    eval_batch_size: int = 64
    save_every: int = 0
    keep: int = 2
    step: int = 0
    lock: object = None
    auto_chunk: dict[str, int] | None = None
    results: dict[str, dict[str, float]] = field(default_factory=dict)


def fit(run: Run) -> str:
    """Train to `total_steps` or until asked to stop. Returns "done" or "preempted"."""
    run.loader.bad.sink = BadSampleList(run.folder, run.world.rank)
    batches = iter(run.loader)
    begin, seen_before = time.perf_counter(), run.step
    with StopSignal() as signals, run.log.live(run.step):
        while run.step < run.total_steps:
            faults.strike(run.world.rank, run.step)
            batch = next(batches)
            settle_chunk_size(run, batch)
            result = run.train_step(
                batch,
                run.step,
                run.schedule(run.step),
                stop=signals.received,
                bad_samples=run.loader.bad.total,
            )
            run.step += 1
            seen = (run.step - seen_before) * run.global_batch_size
            check_share(run.loader.bad, result.bad_samples, seen, run.world)
            done = run.step == run.total_steps
            report(run, result, seen / (time.perf_counter() - begin))
            if due(run.save_every, run.step) or done or result.stop:
                save(run)
            if due(run.eval_every, run.step) or done:
                evaluate(run)
            if result.stop and not done:
                run.log.say(
                    f"stopped by a signal after step {run.step}; resume with run.resume=auto"
                )
                return "preempted"
    judged = (run.folder / "results.json").exists()
    if not run.world.broadcast_int(int(judged)):  # ended between its last save and its evaluation
        evaluate(run)
    report_bad_samples(run)
    return "done"


def settle_chunk_size(run: Run, batch: Batch) -> None:
    """train.chunk_size=auto: measure once, on the first batch; a resumed run keeps its number."""
    step = run.train_step
    if step.chunk_size == "auto":
        step.chunk_size = measured_chunk(run.strategy, step.prepared(batch), run.world)
        run.auto_chunk = {"chunk_size": step.chunk_size, "local_batch": batch.num_samples}
        run.log.say(f"train.chunk_size=auto: {step.chunk_size} of {batch.num_samples} samples fit")
        for text in zero3_note(
            run.strategy.stage, batch.num_samples, step.chunk_size, step.text_chunk_size
        ):
            run.log.warn(text)


def keep_chunk_size(run: Run, measured: dict[str, int] | None) -> None:
    """A resumed run takes the chunk that was measured for the same local batch: the same masks."""
    local_batch = run.global_batch_size // run.world.world_size
    if measured and run.train_step.chunk_size == "auto" and measured["local_batch"] == local_batch:
        run.auto_chunk, run.train_step.chunk_size = measured, measured["chunk_size"]
        run.log.say(f"train.chunk_size=auto: {measured['chunk_size']}, as measured before")


def due(every: int, step: int) -> bool:
    """Whether something that happens every `every` steps happens after `step`."""
    return bool(every) and step % every == 0


def report(run: Run, result: StepResult, rate: float) -> None:
    """Progress line and metrics of one step."""
    lr = run.schedule(result.step)
    text = (
        f"loss {result.loss:.3f}  lr {lr:.1e}  scale {result.logit_scale:.1f}  {rate:.0f} samples/s"
    )
    run.log.tick(run.step, text if result.applied else f"{text}  SKIPPED (not finite)")
    if not result.applied:
        run.log.warn(f"step {run.step}: loss or gradient not finite; all ranks skipped this batch")
    if due(run.log_every, run.step) or not result.applied:
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


def evaluate(run: Run) -> None:
    """Run every evaluator on all ranks through the strategy; logs eval/<name>/<metric>."""
    model = run.strategy.model
    training = model.training
    model.eval()
    embedder = Embedder(
        run.encoder, run.world, batch_size=run.eval_batch_size, refinements=refinements(run)
    )
    results = [evaluator.run(embedder) for evaluator in run.evaluators]
    model.train(training)
    if results:
        if run.step == run.total_steps:
            run.log.console.print(results_table(results))
        run.results = {r.dataset: r.metrics for r in results}
        values = {
            f"eval/{r.dataset}/{key}": value for r in results for key, value in r.metrics.items()
        }
        run.log.metrics(run.step, values)
        if run.world.is_main:
            text = json.dumps(
                {r.dataset: {**r.metrics, "intervals": r.intervals} for r in results}, indent=1
            )
            write_text(run.folder / "results.json", text)
            store_results(run, results, [r.name for r in embedder.refinements])


def refinements(run: Run) -> list[Refinement]:
    """What the add-ons do to features, with their present weights."""
    refining = [a for a in run.addons if type(a).refinement is not AddOn.refinement]
    if not refining:
        return []
    with run.strategy.full_parameters():
        found = [addon.refinement() for addon in refining]
    return [refinement for refinement in found if refinement is not None]


def store_results(run: Run, results: list[EvalResult], refined_by: list[str]) -> None:
    """Records and details of an evaluation, for `clipkit eval report` and `compare`."""
    model = checkpoint_facts(checkpoint_folder(run.folder, run.step))
    facts = {"model_name": model.name, "model": model.arch, "pretrained": model.place}
    for evaluator, result in zip(run.evaluators, results):
        kind = type(evaluator).__module__.removeprefix("clipkit.eval.")
        path = result_path(run.folder / "eval", model.name, result.dataset, kind)
        more = {"kind": kind, "step": run.step, "refinements": refined_by}
        write_result(path, result, {**facts, **more, "language": "en", "key": ""})


def save(run: Run) -> Path:
    """Write a checkpoint of everything a resumed run needs."""
    bad = shared_totals(run.loader.bad, run.world).as_json()
    state = {
        "step": run.step,
        "samples_seen": run.step * run.global_batch_size,
        "optimizer_steps": run.strategy.optimizer_steps(),
        "loader": {**run.loader.state_dict(), "step": run.step, "bad": bad},
        "addons": addon_scalars(run.addons),
        "auto_chunk": run.auto_chunk,
        "results": run.results,
    }
    return write_checkpoint(
        run.folder,
        run.step,
        slices=slices(run.strategy, run.addons),
        state=state,
        model_config=run.model_config,
        world=run.world,
        keep=run.keep,
    )


def resume(run: Run, folder: Path) -> None:
    """Continue from a verified checkpoint."""
    reader = restore(folder, run.strategy, run.addons)
    run.loader.load_state_dict(reader.state["loader"])
    run.loader.bad.before = BadTotals.from_json(reader.state["loader"].get("bad"))
    run.step = int(reader.state["step"])
    keep_chunk_size(run, reader.state.get("auto_chunk"))
    run.results = reader.state.get("results", {})
