"""A thousand crash points of saving and resuming, in one process, on a disk that breaks on demand.

Each trial is a small run whose weights depend on every sample it saw. Its disk fills up, dies at an
operation or a byte (with or without what was not flushed), or flips a bit; then it is started again
until it ends. Weights and history must be those of the run that nothing happened to, and after the
first finished save there is a valid checkpoint at every moment.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from clipkit.checkpoint.host_copy import Slice
from clipkit.checkpoint.read import CheckpointReader
from clipkit.checkpoint.saver import Saver
from clipkit.checkpoint.verify import list_checkpoints, newest_valid
from clipkit.dist.group import World
from clipkit.errors import CheckpointError
from tests.checkpoint.crashing import Crash, CrashingDisk, on

STEPS, EVERY, KEEP, BATCH = 12, 3, 2, 4
KINDS = ("crash_at", "crash_at_byte", "power_loss", "full", "flip_written", "flip_stored")


def train_step(weights: Tensor, ids: list[int]) -> None:
    """Something whose result depends on the order of all samples."""
    weights.mul_(0.75).add_(torch.tensor(ids, dtype=torch.float32).repeat(8) / 7)


def sample_ids(step: int) -> list[int]:
    """Of a global batch."""
    return [(step * BATCH + i) * 37 % 101 for i in range(BATCH)]


def live(run: Path, disk: CrashingDisk, background: bool) -> tuple[Tensor, list[list[int]]]:
    """One life: from the newest valid checkpoint to the end; raises Crash where the disk does."""
    weights, history = torch.zeros(8 * BATCH), []
    with on(disk):
        folder, _ = newest_valid(run)
        if folder is not None:
            reader = CheckpointReader(folder)
            weights.copy_(reader.full("weight", "w"))
            history = [list(map(int, ids)) for ids in reader.state["history"]]
        saver = Saver(run, World(), keep=KEEP, background=background)
        for step in range(len(history), STEPS):
            ids = sample_ids(step)
            train_step(weights, ids)
            history.append(ids)
            if (step + 1) % EVERY == 0:
                saver.save(
                    step + 1,
                    slices=[Slice("weight", "w", tuple(weights.shape), 0, weights)],
                    state={"step": step + 1, "history": history},
                    model_config={},
                )
        saver.wait(retry_after_s=(0, 0))
        saver.close()
    return weights, history


def draw(rng: random.Random, kind: str, counted: CrashingDisk) -> CrashingDisk:
    """A disk with one fault at a place that a faultless run passes."""
    operation, byte = rng.randint(1, counted.operations), rng.randint(1, counted.written)
    if kind == "crash_at_byte":
        return CrashingDisk(crash_at_byte=byte, power_loss=rng.random() < 0.5)
    if kind == "full":
        return CrashingDisk(full_from=operation, full_for=rng.randint(1, 8))
    if kind == "flip_written":  # not in the first save, before which there is nothing to go back to
        later = rng.randint(counted.written // 2, counted.written)
        return CrashingDisk(flip_at_byte=later, crash_at=operation)
    return CrashingDisk(crash_at=operation, power_loss=kind == "power_loss")


def flip_stored(rng: random.Random, run: Path) -> bool:
    """One bit of one file of a checkpoint that is not the only valid one."""
    stored = list_checkpoints(run)
    if len(stored) < 2:
        return False
    file = rng.choice(sorted(p for p in rng.choice(stored).iterdir() if p.stat().st_size))
    data = bytearray(file.read_bytes())
    place = rng.randrange(len(data))
    data[place] ^= 1 << rng.randrange(8)
    file.write_bytes(bytes(data))
    return True


def trial(folder: Path, rng: random.Random, kind: str, counted: CrashingDisk) -> tuple[int, bool]:
    """One run through one fault; returns how many lives it took, and whether the fault struck.

    Raises:
        AssertionError: What survived is not the run without a fault.
    """
    run, lives, saved = folder / "run", 0, False
    disk = first = draw(rng, "crash_at" if kind == "flip_stored" else kind, counted)
    struck = False
    while True:
        lives += 1
        assert lives < 10, "the run does not come to its end"
        try:
            weights, history = live(run, disk, background=rng.random() < 0.5)
            break
        except (Crash, CheckpointError) as error:
            assert isinstance(error, Crash) or kind == "full", error
        valid = newest_valid(run)[0] is not None
        saved = saved or bool(list_checkpoints(run))
        assert valid or not saved, f"{run}: no valid checkpoint is left"
        if kind == "flip_stored" and lives == 1:
            struck = flip_stored(rng, run)
        disk = CrashingDisk()
    expected = torch.zeros(8 * BATCH)
    for step in range(STEPS):
        train_step(expected, sample_ids(step))
    assert history == [sample_ids(step) for step in range(STEPS)]
    assert torch.equal(weights, expected)
    last = newest_valid(run)[0]
    assert last is not None
    if kind != "flip_written":  # that bit may lie in the last one; then the one before is found
        assert torch.equal(CheckpointReader(last).full("weight", "w"), expected)
    shutil.rmtree(run)
    wanted = {"full": "full", "flip_written": "flip"}.get(kind, "crash")
    return lives, struck if kind == "flip_stored" else wanted in first.struck


def soak(
    folder: Path, *, seed: int, trials: int, tell: Callable[[int], None] = lambda done: None
) -> Counter[str]:
    """So many trials whose fault struck, all kinds in turn; returns how many of each, and of lives.

    A fault may lie where the run does not come: such a trial is "missed", and another one drawn.
    """
    counts: Counter[str] = Counter()
    with mock.patch("clipkit.checkpoint.verify._PAUSES_S", (0.0,)):
        counted = CrashingDisk()
        live(folder / "run", counted, background=False)
        shutil.rmtree(folder / "run")
        done, number = 0, -1
        while done < trials:
            kind, number = KINDS[done % len(KINDS)], number + 1
            try:
                lives, struck = trial(folder, random.Random(f"{seed}-{number}"), kind, counted)
            except AssertionError as error:
                raise AssertionError(f"seed {seed}, trial {number}, {kind}: {error}") from error
            counts["lives"] += lives
            counts[kind if struck else "missed"] += 1
            done += struck
            if struck:
                tell(done)
    with suppress(FileNotFoundError):
        shutil.rmtree(folder / "run")
    return counts
