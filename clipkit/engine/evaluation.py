"""Evaluation in training: every evaluator on all ranks, through the strategy.

It may take longer than a signal leaves time for, and than a rank may be without progress. So each
forward pass, of which all ranks do the same number, asks whether one of them was told to stop.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable

from clipkit.addons.base import AddOn
from clipkit.checkpoint.files import write_text
from clipkit.checkpoint.verify import checkpoint_folder
from clipkit.contracts import Batch, Outputs
from clipkit.engine.run import Run
from clipkit.errors import DataError
from clipkit.eval.base import EvalResult
from clipkit.eval.embed import Embedder
from clipkit.eval.results import result_path, write_result
from clipkit.eval.suite import checkpoint_facts
from clipkit.eval.table import results_table
from clipkit.retrieval.refinement import Refinement
from clipkit.towers.dual import FeatureEncoder


class Stopped(Exception):
    """Raised on all ranks alike: one of them was told to stop."""


def evaluate(run: Run, stop: Callable[[], bool]) -> bool:
    """Run every evaluator on all ranks through the strategy; logs eval/<name>/<metric>.

    Args:
        run: The run.
        stop: Whether this rank was told to stop.

    Returns:
        Whether it came to its end; else nothing is written.
    """
    run.watchdog.at("eval", run.step)
    model = run.strategy.model
    training = model.training
    model.eval()
    embedder = Embedder(
        watched(run, stop), run.world, batch_size=run.eval_batch_size, refinements=refinements(run)
    )
    results = []
    try:
        for evaluator in run.evaluators:
            results.append(evaluator.run(embedder))
            run.watchdog.at("eval", run.step)
    except Stopped:
        return False
    finally:
        model.train(training)
    run.evaluated = run.step
    if results:
        tell(run, results, [r.name for r in embedder.refinements])
    return True


def watched(run: Run, stop: Callable[[], bool]) -> FeatureEncoder:
    """The run's encoder; each forward pass is a sign of life, and an opportunity to stop."""
    encoder = copy.copy(run.encoder)

    def forward(batch: Batch) -> Outputs:
        run.watchdog.at("eval", run.step)
        run.status.update()
        if run.world.max_int(int(stop())):
            raise Stopped
        return run.encoder.forward(batch)

    encoder.forward = forward  # type: ignore[method-assign]
    return encoder


def tell(run: Run, results: list[EvalResult], refined_by: list[str]) -> None:
    """Results to the log, the screen and the run folder."""
    if run.step == run.total_steps:
        run.log.show(results_table(results))
    run.results = {r.dataset: r.metrics for r in results}
    values = {f"eval/{r.dataset}/{key}": value for r in results for key, value in r.metrics.items()}
    run.log.metrics(run.step, values)
    if run.world.is_main:
        write_results(run, results, refined_by)


def judged(run: Run) -> bool:
    """Whether the run folder has the results of this very step, of every evaluator."""
    name = checkpoint_facts(checkpoint_folder(run.folder, run.step)).name
    stored = list((run.folder / "eval" / name).glob("*.json"))
    return (run.folder / "results.json").exists() and len(stored) >= len(run.evaluators)


def refinements(run: Run) -> list[Refinement]:
    """What the add-ons do to features, with their present weights."""
    refining = [a for a in run.addons if type(a).refinement is not AddOn.refinement]
    if not refining:
        return []
    with run.strategy.full_parameters():
        found = [addon.refinement() for addon in refining]
    return [refinement for refinement in found if refinement is not None]


def write_results(run: Run, results: list[EvalResult], refined_by: list[str]) -> None:
    """results.json, and the records. A full disk, or what is no result, ends no training."""
    values = {r.dataset: {**r.metrics, "intervals": r.intervals} for r in results}
    try:
        write_text(run.folder / "results.json", json.dumps(values, indent=1))
        store_results(run, results, refined_by)
    except (OSError, ValueError, TypeError, DataError) as error:
        told = f"results of this evaluation are in the log only: {error}"
        run.log.event("results_failed", run.step, told, alarm=True)


def store_results(run: Run, results: list[EvalResult], refined_by: list[str]) -> None:
    """Records and details of an evaluation, for `clipkit eval report` and `compare`."""
    model = checkpoint_facts(checkpoint_folder(run.folder, run.step))
    facts = {"model_name": model.name, "model": model.arch, "pretrained": model.place}
    for evaluator, result in zip(run.evaluators, results):
        kind = type(evaluator).__module__.removeprefix("clipkit.eval.")
        path = result_path(run.folder / "eval", model.name, result.dataset, kind)
        more = {"kind": kind, "step": run.step, "refinements": refined_by}
        write_result(path, result, {**facts, **more, "language": "en", "key": ""})
