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

from clipkit.checkpoint import write
from clipkit.checkpoint.verify import newest_valid, step_of
from tests.faults.harness import (
    BATCH,
    assert_same_weights,
    history,
    life,
    sample_ids,
    write_config,
)

EVERY, TIMEOUT_S = 5, 8.0
KINDS = ("kill", "kill", "term", "usr1", "stop", "disk_full", "save")
POINTS = write.POINTS


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


def draw(rng: random.Random, newest: int, steps: int, kinds: tuple[str, ...]) -> tuple[str, str]:
    """(kind, CLIPKIT_FAULT) of a life that begins after step `newest`."""
    kind = rng.choice(kinds)
    step = min(newest + rng.randint(1, 2 * EVERY), steps - 1)
    rank = rng.randrange(2)
    if kind == "save":  # at a save that comes, on rank 0, which does the last moves
        step = min(EVERY * (newest // EVERY + 1), steps)
        return kind, f"save@0:{step}:{rng.choice(POINTS)}"
    if kind == "disk_full":  # and an end, so that the next life finds what it left
        full = EVERY * (newest // EVERY + 1)
        return kind, f"disk_full@{rank}:{full},kill@{rank}:{min(full + 3, steps - 1)}"
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
    rng, report, begin = random.Random(seed), Report(), time.monotonic()
    steps = EVERY * faults
    config = config_of(folder, steps, strategy, **data)
    answer = life(config, "run.name=reference", timeout=600)
    assert answer.status == 0, answer.err
    run = folder / "runs" / "faulty"
    while True:
        newest = newest_valid(run)[0]
        done = step_of(newest) if newest else 0
        left = faults - sum(report.faults.values())
        if done >= steps and not left:
            break
        kind, fault = draw(rng, min(done, steps - 1), steps, kinds) if left > 0 else ("", "")
        options = ["run.name=faulty", "run.resume=auto"]
        answer = life(config, *options, fault=fault, timeout=600)
        report.lives += 1
        if left > 0:
            report.faults[kind] += 1
        tell(
            f"life {report.lives}: {fault or 'no fault'} -> status {answer.status}, {answer.seconds:.0f} s"
        )
        if not fault:
            assert answer.status == 0, answer.err
            break
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
