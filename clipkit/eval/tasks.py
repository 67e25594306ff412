"""Which tasks there are, which fit a data set, and how a command line or a file names them."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from clipkit.config.load import read_yaml
from clipkit.config.parts import build_part, check_part, list_kinds, part_class, read_part, suggest
from clipkit.data.eval_sets import EvalSet, types_of
from clipkit.errors import ClipkitError, ConfigError
from clipkit.eval.base import EvalResult
from clipkit.eval.embed import Embedder
from clipkit.eval.results import result_path

_LONGEST = 150  # characters of a data set's name: it is part of a file's name
DEFAULT = {
    "classification": "zero_shot",
    "multilabel": "multilabel",
    "retrieval": "retrieval",
    "selection": "selection",
    "mixed_search": "mixed_modality",
}


class Evaluator(Protocol):
    """Any evaluation task.

    Attributes:
        reads: Types of data sets it takes (`clipkit.data.eval_sets.TYPES`).
        files: Arguments that name files or folders a result depends on; may be absent.
        name: Of the data set, as results show it.
    """

    reads: ClassVar[tuple[str, ...]]
    name: str

    def check(self) -> object:
        """Open the data set; raises DataError before any time is spent."""
        ...

    def run(self, model: Embedder) -> EvalResult:
        """Evaluate on all ranks; every rank gets the result."""
        ...


@dataclass(frozen=True)
class Job:
    """A task on a data set, checked.

    Attributes:
        kind: Of the evaluator.
        evaluator: It.
        root: Folder of the data set.
        arguments: Its YAML arguments, complete.
    """

    kind: str
    evaluator: Evaluator
    root: Path
    arguments: dict[str, Any]


def plan(
    sets: Sequence[EvalSet], tasks: Sequence[str] = (), extensions: tuple[str, ...] = ()
) -> tuple[list[Job], list[str]]:
    """Jobs for a command line.

    Args:
        sets: Data sets found below --data.
        tasks: Kinds, globs over kinds ("*gap*"), or YAML files with a list of {kind, data, ...};
            none: the default task of every set and type.
        extensions: Packages allowed as dotted kinds.

    Returns:
        The jobs, and notes on what a glob left out.

    Raises:
        ClipkitError: A task is unknown, fits no data set, or its data set is not whole.
    """
    jobs: list[Job] = []
    notes: list[str] = []
    if not tasks:
        for place in sets:
            kinds = [DEFAULT[t] for t in place.types if t in DEFAULT]
            jobs += [_job({"kind": kind}, place, extensions) for kind in kinds]
    for task in tasks:
        if task.endswith((".yaml", ".yml")):
            jobs += _from_file(Path(task), sets, extensions)
        elif any(c in task for c in "*?["):
            found, left_out = _from_glob(task, sets)
            jobs, notes = jobs + found, notes + left_out
        else:
            jobs += _from_kind(task, sets, extensions)
    _refuse_twins(jobs)
    return jobs, notes


def types_read(kind: str, extensions: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Types of data sets that a kind takes.

    Raises:
        ConfigError: No such kind.
    """
    return tuple(part_class("eval", kind, extensions).reads)


def _from_kind(kind: str, sets: Sequence[EvalSet], extensions: tuple[str, ...]) -> list[Job]:
    reads = types_read(kind, extensions)
    fitting = [place for place in sets if set(reads) & set(place.types)]
    if not fitting:
        there = ", ".join(f"{p.name} ({'/'.join(p.types)})" for p in sets)
        raise ConfigError(f"--tasks {kind}: reads {' or '.join(reads)}; --data has {there}")
    return [_job({"kind": kind}, place, extensions) for place in fitting]


def _from_glob(pattern: str, sets: Sequence[EvalSet]) -> tuple[list[Job], list[str]]:
    kinds = fnmatch.filter(list_kinds("eval"), pattern)
    if not kinds:
        raise ConfigError(f"--tasks '{pattern}' matches no kind{suggest('', list_kinds('eval'))}")
    jobs, notes = [], []
    for place in sets:
        for kind in kinds:
            if set(types_read(kind)) & set(place.types):
                try:
                    jobs.append(_job({"kind": kind}, place, ()))
                except ClipkitError as error:
                    notes.append(f"{place.name}: {kind} left out: {error}")
    return jobs, notes


def _from_file(path: Path, sets: Sequence[EvalSet], extensions: tuple[str, ...]) -> list[Job]:
    """Jobs of a YAML list; `data` names one of the sets, or is a folder (from the file's own)."""
    entries = read_yaml(path)
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"--tasks {path}: write a list of {{kind: ..., data: ...}}")
    jobs = []
    known = {place.name: place for place in sets}
    for i, entry in enumerate(entries):
        where = f"{path}: {i}"
        extra = {"data": (str, ...), "name": (str | None, None)}
        spec = check_part("eval", entry, where, extensions=extensions, extra=extra)
        data, split = spec["data"], spec.get("split", "test")
        place = known.get(data if split == "test" else f"{data}/{split}") or known.get(data)
        if place is None:
            root = path.parent / data
            types = types_of(root, split) if root.is_dir() else ()
            if not types:
                raise ConfigError(
                    f"{where}.data: '{data}' is neither a set below --data nor a folder with "
                    f"{split} shards{suggest(data, list(known))}"
                )
            place = EvalSet(root.resolve(), split, types)
        jobs.append(_job(entry, place, extensions))
    return jobs


def _job(entry: dict[str, Any], place: EvalSet, extensions: tuple[str, ...]) -> Job:
    """One job, its data set opened.

    Raises:
        ClipkitError: Unknown argument, or a data set that is not whole.
    """
    spec = {k: v for k, v in entry.items() if k not in ("data", "name")}
    info = read_part("eval", spec["kind"], extensions)
    if "split" not in spec and any(p.name == "split" for p in info.parameters):
        spec["split"] = place.split
    spec = check_part("eval", spec, f"--tasks {spec['kind']}", extensions=extensions, extra={})
    name = entry.get("name") or place.name
    if not name.isprintable() or len(name) > _LONGEST:
        raise ConfigError(f"task {spec['kind']}: the name {name[:40]!r} cannot name a file")
    evaluator = build_part("eval", spec, str(place.root), name, extensions=extensions)
    if not set(evaluator.reads) & set(place.types):
        raise ConfigError(
            f"task {spec['kind']} reads {' or '.join(evaluator.reads)}; "
            f"{place.root} is {'/'.join(place.types)}"
        )
    evaluator.check()
    return Job(spec["kind"], evaluator, place.root, spec)


def _refuse_twins(jobs: Sequence[Job]) -> None:
    seen: dict[Path, Job] = {}
    for job in jobs:
        key = result_path(Path(), "", job.evaluator.name, job.kind)
        if key in seen:
            raise ConfigError(
                f"task {job.kind} is asked for twice on '{job.evaluator.name}' "
                f"({seen[key].root} and {job.root}); give each a name in a tasks file"
            )
        seen[key] = job
