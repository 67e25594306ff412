"""Many tasks on one loaded model: features once, finished tasks skipped, results stored at once."""

from __future__ import annotations

import json
import platform
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from clipkit.checkpoint.verify import checkpoint_step
from clipkit.config.load import read_yaml
from clipkit.data.content_hash import tree_hash
from clipkit.errors import ConfigError, DataError
from clipkit.eval.embed import Embedder
from clipkit.eval.feature_cache import digest
from clipkit.eval.modality_means import scored_files
from clipkit.eval.results import StoredResult, read_result, result_path, write_result
from clipkit.eval.tasks import Job
from clipkit.retrieval.calibration import Centring, Shift, load_calibration
from clipkit.retrieval.refinement import Refinement

VERSION = "2"  # raise it when a task's numbers change, so that stored results are computed again


@dataclass(frozen=True)
class ModelFacts:
    """Which model a result belongs to.

    Attributes:
        name: Of its folder of results.
        place: Path or tag it was loaded from.
        arch: open_clip architecture where one was named, else the run's or export's name.
        step: Of the checkpoint, if it has one.
    """

    name: str
    place: str
    arch: str
    step: int | None = None


def checkpoint_facts(folder: Path) -> ModelFacts:
    """A run's checkpoint; its architecture stands in the run's config.yaml."""
    run = folder.resolve().parent.parent
    name = f"{run.name}-{folder.name}"
    try:
        arch = str(read_yaml(run / "config.yaml")["model"]["arch"])
    except (ConfigError, KeyError, TypeError):
        arch = name
    return ModelFacts(name, str(folder), arch, checkpoint_step(folder))


def refined_facts(facts: ModelFacts, refinements: Sequence[Refinement]) -> ModelFacts:
    """The model with refined features: a name of its own, so its results lie beside the plain ones.

    The name is the checkpoint's, the kind of each refinement, and a short hash that stands for all
    their settings; results name these in full.
    """
    if not refinements:
        return facts
    names = [r.name for r in refinements]
    kinds = [re.split(r"[^\w.]", name)[0][:20] for name in names]
    label = "+".join([facts.name, *kinds])
    return replace(facts, name=f"{label}-{digest(names=json.dumps(names))[:6]}")


def scored_calibrations(jobs: Sequence[Job], refinements: Sequence[Refinement]) -> list[str]:
    """A line on each job that scores what the model's calibration was fitted on."""
    fitted = [r.calibration for r in refinements if isinstance(r, Centring | Shift)]
    found = []
    for job in jobs:
        file = job.arguments.get("calibration") if job.kind == "mixed_modality" else ""
        own = [load_calibration(file)] if file else []
        split = str(job.arguments.get("split", "test"))
        if any(c.files & scored_files(job.root, split) for c in fitted + own):
            found.append(
                f"{job.evaluator.name}: {job.kind} scores data that the calibration was fitted on; "
                f"its numbers are too good; fit it on other data"
            )
    return found


def run_jobs(
    jobs: list[Job], model: Embedder, facts: ModelFacts, out: Path, *, force: bool = False
) -> Iterator[tuple[StoredResult, bool]]:
    """Run every job, on all ranks; rank 0 writes.

    Yields:
        (result, whether it was computed now) of each job. A result that is there with the same key
        is not computed again. On ranks other than 0 nothing is yielded.

    Raises:
        NonFiniteResult: The model gives NaN or infinity.
        DataError: A data set is not whole, or `out` cannot be written.
    """
    world = model.world
    for job in jobs:
        path = result_path(out, facts.name, job.evaluator.name, job.kind)
        words = [v for v in job.arguments.values() if isinstance(v, str) and v]
        data = tree_hash(job.root, words) if world.is_main else ""
        key = _key(job, model, data) if world.is_main else ""
        stored = _finished(path, key, model, force) if world.is_main else None
        if not world.max_int(int(stored is None and world.is_main)):
            if stored is not None:
                yield stored, False
            continue
        start = time.perf_counter()
        result = job.evaluator.run(model)
        if world.is_main:
            more = {"key": key, "data_hash": data, "seconds": round(time.perf_counter() - start, 3)}
            try:
                stored = write_result(path, result, {**_facts(job, model, facts), **more})
            except OSError as error:
                raise DataError(f"--out {out}: cannot be written: {error.strerror}") from None
            yield stored, True


def _finished(path: Path, key: str, model: Embedder, force: bool) -> StoredResult | None:
    """The result that is there and still holds.

    Raises:
        DataError: It is of other weights or refinements, and nobody asked for it to be replaced.
    """
    try:
        stored = read_result(path)
        stored.records()
    except DataError:
        return None
    if force:
        return None
    weights = stored.data.get("weights_hash", model.encoder.weights_hash)
    if weights != model.encoder.weights_hash:
        raise DataError(f"{path} holds a result of other weights; choose another --out, or --force")
    theirs, ours = stored.data.get("refinements", []), _refinements(model)
    if theirs != ours:
        raise DataError(
            f"{path} holds a result of features refined by {theirs or 'nothing'}, these are by "
            f"{ours or 'nothing'}; choose another --out, or --force"
        )
    return stored if stored.data["key"] == key else None


def _refinements(model: Embedder) -> list[str]:
    return [refinement.name for refinement in model.refinements]


def _key(job: Job, model: Embedder, data: str) -> str:
    """Hash of all a result depends on: model, data, arguments, our own version of the tasks."""
    encoder = model.encoder
    named = [job.arguments.get(name) for name in getattr(job.evaluator, "files", ())]
    places = [p for v in named if v for p in (Path(v), job.root / v, job.root.parent / v)]
    return digest(
        version=VERSION,
        kind=job.kind,
        name=job.evaluator.name,
        arguments=str(sorted(job.arguments.items())),
        data=data,
        more="".join(tree_hash(p) for p in places if p.exists()),
        weights=encoder.weights_hash,
        transform=encoder.transform_hash + encoder.tokenizer_hash,
        precision=encoder.precision,
        batch_size=str(model.batch_size),
        threads=model.threads,
        **({"refinements": "\n".join(_refinements(model))} if model.refinements else {}),
    )


def _facts(job: Job, model: Embedder, facts: ModelFacts) -> dict[str, Any]:
    """What stands beside the metrics: CLIP_benchmark's keys and the provenance."""
    encoder = model.encoder
    return {
        "kind": job.kind,
        "arguments": job.arguments,
        "model": facts.arch,
        "model_name": facts.name,
        "pretrained": facts.place,
        "step": facts.step,
        "language": "en",
        "weights_hash": encoder.weights_hash,
        "refinements": _refinements(model),
        "transform_hash": encoder.transform_hash,
        "tokenizer_hash": encoder.tokenizer_hash,
        "precision": encoder.precision,
        "score_dtype": "fp32",
        "batch_size": model.batch_size,
        "threads": model.threads,
        "skipped_samples": 0,  # an unreadable sample fails the task
        "versions": {
            "clipkit": version("clipkit"),
            "torch": version("torch"),
            "open_clip": version("open_clip_torch"),
            "python": platform.python_version(),
        },
    }
