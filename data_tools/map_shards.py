"""One function over many shards: on one machine or a cluster, resumable, no failure lost."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from clipkit.errors import DataError
from data_tools.done import code_hash, fingerprint, marker_path, read_done, shard_identity
from data_tools.engines import Run, load_engine
from data_tools.engines.task import Outcome, Task

Result = dict[str, Any]
Tick = Callable[[Outcome], None]


@dataclass
class MapReport:
    """What became of each shard.

    Attributes:
        shards: Those that the run was about, in order.
        results: What the function returned for each; None where it failed or was not run.
        failures: (shard, one-line reason) of those that failed to the end.
        skipped: How many were done before.
        seconds: The run took.
    """

    shards: list[str]
    results: list[Result | None]
    failures: list[tuple[str, str]] = field(default_factory=list)
    skipped: int = 0
    seconds: float = 0.0

    @property
    def done(self) -> list[Result]:
        """Results of the shards that did not fail."""
        return [result for result in self.results if result is not None]

    def facts(self) -> dict[str, Any]:
        """For `write_summary`: shards, done before, samples, seconds and failures."""
        return {
            "shards": len(self.shards),
            "done_before": self.skipped,
            "samples": sum(int(result.get("samples", 0)) for result in self.done),
            "seconds": round(self.seconds, 3),
            "failures": [{"shard": shard, "reason": reason} for shard, reason in self.failures],
        }

    def raise_failures(self) -> None:
        """Do nothing if all went well.

        Raises:
            DataError: How many shards failed, the first three of them and why the first one did.
        """
        if self.failures:
            names = ", ".join(shard for shard, _ in self.failures[:3])
            more = ", ..." if len(self.failures) > 3 else ""
            raise DataError(
                f"{len(self.failures)} of {len(self.shards)} shards failed: {names}{more} "
                f"({self.failures[0][1]}); run the same command to retry"
            )


def map_shards(
    fn: Callable[..., Mapping[str, Any]],
    shards: Sequence[str],
    *,
    out: Path,
    params: Mapping[str, Any],
    engine: str = "process",
    workers: int | None = None,
    retries: int = 2,
    resume: bool = True,
    limit: int | None = None,
    dry_run: bool = False,
    progress: bool = True,
    label: str = "",
) -> MapReport:
    """Call `fn(shard, out, **params)` for every shard, in parallel, and note each that is done.

    Args:
        fn: A function of a module (no lambda, nothing nested). It writes its files below `out`,
            each whole or not at all, and returns JSON. "samples" is counted in the progress bar;
            "outputs", one path or a list of them (below `out`, or absolute), are files whose loss
            brings the shard back. A ClipkitError from it is final, anything else is tried again.
        shards: Paths or URLs, each once.
        out: Folder of the outputs and of `.done/`.
        params: Keyword arguments, JSON. A file that `fn` reads belongs in here with its hash: what
            was done is told by `done.code_hash` of `fn`'s module, these, and each shard's size and
            time.
        engine: "process", "ray" or "spark".
        workers: Parallel shards; None: as many as there are CPUs.
        retries: Further rounds for shards that failed.
        resume: Skip what is marked done.
        limit: Only the first so many shards.
        dry_run: Say what would run and touch nothing; results are those done before.
        progress: Show a bar on stderr.
        label: Words before the bar.

    Raises:
        ConfigError: Unknown engine, or its package is missing.
        DataError: A shard is named twice, or `out` cannot be made.
    """
    start, out = time.monotonic(), Path(out).absolute()
    run = load_engine(engine)
    tasks = _tasks(fn, list(shards)[:limit], out, params)
    results = [read_done(Path(t.marker), t.fingerprint, out) if resume else None for t in tasks]
    report = MapReport([task.shard for task in tasks], results)
    waiting = results.count(None)
    report.skipped = len(tasks) - waiting
    if dry_run:
        print(f"{label or fn.__name__}: {waiting} shards to do, {report.skipped} done; "
              f"dry run, nothing is written")  # fmt: skip
        return report
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{out}: cannot be made: {error.strerror}") from None
    if waiting:
        with _bar(label or fn.__name__, report, progress) as tick:
            _run_rounds(run, tasks, report, tick, workers=workers, retries=retries)
    report.seconds = time.monotonic() - start
    return report


def _tasks(
    fn: Callable[..., Any], shards: list[str], out: Path, params: Mapping[str, Any]
) -> list[Task]:
    assert "." not in fn.__qualname__ and fn.__module__ != "__main__", f"{fn} is not importable"
    if len(set(shards)) < len(shards):
        twice = next(shard for i, shard in enumerate(shards) if shard in shards[:i])
        raise DataError(f"shard '{twice}' is named twice; name each shard once")
    kept = json.loads(json.dumps(dict(params)))
    code = f"{fn.__qualname__} {code_hash(fn.__module__)}"
    with ThreadPoolExecutor(16) as pool:
        identities = list(pool.map(shard_identity, shards))
    name = f"{fn.__module__}.{fn.__qualname__}"
    return [
        Task(
            fn.__module__,
            fn.__qualname__,
            shard,
            str(out),
            kept,
            str(marker_path(out, name, shard)),
            fingerprint(code, kept, identity),
        )
        for shard, identity in zip(shards, identities)
    ]


def _run_rounds(
    run: Run,
    tasks: list[Task],
    report: MapReport,
    tick: Tick,
    *,
    workers: int | None,
    retries: int,
) -> None:
    """Fill in results; what fails goes into the next round, and after the last into failures."""
    waiting = [number for number, result in enumerate(report.results) if result is None]
    reasons: dict[int, str] = {}
    for left in range(retries, -1, -1):
        again = []
        # Closed also by Ctrl-C, so that no engine outlives this function.
        with closing(run([tasks[number] for number in waiting], workers)) as outcomes:
            for place, outcome in outcomes:
                number = waiting[place]
                if outcome.result is not None:
                    report.results[number] = outcome.result
                elif left and not outcome.final:
                    again.append(number)
                    continue
                else:
                    reasons[number] = outcome.error
                tick(outcome)
        waiting = sorted(again)
        if not waiting:
            break
    report.failures = [(tasks[number].shard, reasons[number]) for number in sorted(reasons)]


@contextmanager
def _bar(label: str, report: MapReport, show: bool) -> Iterator[Tick]:
    """A progress bar of shards; the function it gives counts one more."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    start, samples, failed = time.monotonic(), 0, 0
    with Progress(*columns, console=Console(file=sys.stderr), disable=not show) as bar:
        task = bar.add_task(label, total=len(report.shards), completed=report.skipped, rate="")

        def tick(outcome: Outcome) -> None:
            nonlocal samples, failed
            samples += int((outcome.result or {}).get("samples", 0))
            failed += outcome.result is None
            rate = f"{samples / (time.monotonic() - start):.0f} samples/s" if samples else ""
            bar.update(task, advance=1, rate=f"{rate} {failed} failed" if failed else rate)

        yield tick
