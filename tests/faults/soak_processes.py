"""Many real faults on two gloo processes: what survives is the run without faults, bit for bit.

A life is one start of torchrun that is told to break at a step drawn by the seed; the next one
resumes. Losses, sample ids and the final weights must be those of a run that nothing happened to.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipkit.checkpoint.verify import newest_valid, step_of
from clipkit.faults import POINTS
from tests.faults.harness import (
    BATCH,
    assert_same_weights,
    history,
    life,
    sample_ids,
    status,
    write_config,
)

EVERY, TIMEOUT_S = 5, 8.0
KINDS = ("kill", "kill", "term", "usr1", "stop", "disk_full", "save")


@dataclass
class Report:
    """What happened."""

    faults: Counter[str] = field(default_factory=Counter)
    lives: int = 0
    steps: int = 0
    seconds: float = 0.0


def config_of(folder: Path, steps: int, strategy: str, **data: Any) -> Path:
    """A run that saves every few steps; `reference` and `faulty` are names of two such runs."""
    engine: dict[str, Any] = {"strategy": strategy, "timeout_s": TIMEOUT_S}
    if strategy == "deepspeed":
        engine = {**engine, "zero_stage": 2, "timeout_s": 3 * TIMEOUT_S}
    return write_config(
        folder,
        train={"total_steps": steps},
        engine=engine,
        data=data,
        checkpoint={"every": EVERY, "keep": 2},
        eval={"tasks": []},
    )


def draw(rng: random.Random, newest: int, kinds: tuple[str, ...]) -> tuple[str, str]:
    """(kind, CLIPKIT_FAULT) of a life that begins after step `newest`."""
    kind, rank, step = rng.choice(kinds), rng.randrange(2), newest + rng.randint(1, 2 * EVERY)
    saved = EVERY * (newest // EVERY + 1)
    if kind == "save":  # at a save that comes, on rank 0, which does the last moves
        points = POINTS if newest >= 2 * EVERY else [x for x in POINTS if x != "prune"]
        return kind, f"save@0:{saved}:{rng.choice(points)}"
    if kind == "disk_full":  # and an end, so that the next life finds what it left
        return kind, f"disk_full@{rank}:{saved},kill@{rank}:{saved + 3}"
    return kind, f"{kind}@{rank}:{step}"


def soak(
    folder: Path,
    *,
    seed: int,
    faults: int,
    strategy: str = "torch",
    kinds: tuple[str, ...] = KINDS,
    tell: Callable[[str], None] = print,
    **data: Any,
) -> Report:
    """Run to the end through `faults` faults and compare.

    Raises:
        AssertionError: The surviving history or weights differ from the reference's.
    """
    # a string: the same draws in every process
    rng, report, begin = random.Random(f"{seed} {folder.name}"), Report(), time.monotonic()
    steps = 2 * EVERY * (faults + 1)  # none brings a run further than two saves
    config = config_of(folder, steps, strategy, **data)
    answer = life(config, "run.name=reference", timeout=600)
    assert answer.status == 0, answer.err
    run = folder / "runs" / "faulty"
    for number in range(faults + 1):
        newest = newest_valid(run)[0]
        done = step_of(newest) if newest else 0
        kind, fault = draw(rng, done, kinds) if number < faults else ("none", "")
        answer = life(config, "run.name=faulty", "run.resume=auto", fault=fault, timeout=600)
        ended = f"{status(run)['state']} ({answer.status}) after {answer.seconds:.0f} s"
        tell(f"{number}: from step {done}, {fault or kind}: {ended}")
        struck = answer.status != 0 or status(run)["state"] == "preempted"
        assert struck == bool(fault), answer.err
        report.lives += 1
        report.faults.update([kind] * bool(fault))
    report.steps, report.seconds = steps, time.monotonic() - begin
    compare(folder / "runs", steps, data)
    return report


def compare(runs: Path, steps: int, data: dict[str, Any]) -> None:
    """Every step once, with the reference's loss and samples; the same weights at the end."""
    reference, faulty = history(runs / "reference"), history(runs / "faulty")
    assert [step for step, _, _ in faulty] == list(range(1, steps + 1))
    assert faulty == reference, next((a, b) for a, b in zip(faulty, reference) if a != b)
    assert_same_weights(runs / "reference", runs / "faulty")
    if not data:
        import numpy as np

        from clipkit.data.order import batch_checksum

        for (step, _, checksum), ids in zip(faulty, sample_ids(steps)):
            assert len(ids) == BATCH
            assert checksum == batch_checksum(np.asarray(ids), 0), f"step {step}"
