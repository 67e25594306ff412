"""Runs with a fault in them, and what they leave: history, weights, samples.

`life` starts torchrun (a fault may end processes); `fit_with_fault` is for `ranks(n).run`, where
no process may die. A run of the same config without a fault is the fixture `reference`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from clipkit import faults
from clipkit.checkpoint.read import CheckpointReader
from clipkit.checkpoint.verify import find_checkpoint
from clipkit.data.order import Order, batch_checksum
from clipkit.dist.group import World
from tests.e2e.runs import environment, finish, metrics, write_run
from tests.engine.inprocess import fit_in_pool

TOTAL_STEPS, BATCH = 40, 16
SHARDS, STREAMS, WINDOW = [40, 24, 36], 4, 8


@dataclass(frozen=True)
class Life:
    """One start of torchrun, ended."""

    status: int
    out: str
    err: str
    seconds: float


def write_config(folder: Path, **sections: Any) -> Path:
    """Data and the config of a 40-step run that saves every 10 steps; sections update its own."""
    ours: dict[str, Any] = {"train": {"total_steps": TOTAL_STEPS}, "checkpoint": {"every": 10}}
    for name, values in sections.items():
        ours[name] = {**ours.get(name, {}), **values} if isinstance(values, dict) else values
    ours["train"] = {"global_batch_size": BATCH, "chunk_size": 4, "threads": 1, **ours["train"]}
    return write_run(folder, **ours)


def launch(
    config: Path, *overrides: str, fault: str = "", ranks: int = 2, options: tuple[str, ...] = ()
) -> subprocess.Popen[str]:
    """`torchrun OPTIONS -m clipkit train CONFIG OVERRIDES` in a process group of its own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={ranks}", *options, "-m", "clipkit", "train", str(config)]
    extra = {faults.VARIABLE: fault} if fault else {}
    return subprocess.Popen(
        [*command, *overrides],
        env=environment(**extra),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def life(
    config: Path, *overrides: str, fault: str = "", ranks: int = 2, timeout: float = 120
) -> Life:
    """A start of torchrun, from beginning to end."""
    begin = time.monotonic()
    answer = finish(launch(config, *overrides, fault=fault, ranks=ranks), timeout)
    return Life(*answer, time.monotonic() - begin)


def told(err: str) -> list[str]:
    """What `clipkit train` said went wrong, a line each; that it will be broken is none of it."""
    lines = [line for line in err.splitlines() if line.startswith("clipkit: ")]
    return [line for line in lines if not line.startswith("clipkit: warning: ")]


def fit_with_fault(world: World, config: str, overrides: list[str], fault: str) -> str:
    """`fit_in_pool` with a fault switched on in this rank."""
    with mock.patch.dict(os.environ, {faults.VARIABLE: fault}):
        return fit_in_pool(world, config, overrides)


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Until metrics.jsonl has this step."""
    path = run / "metrics.jsonl"
    while not path.exists() or f'{{"step": {step},' not in path.read_text():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def history(run: Path) -> list[tuple[int, float | None, int]]:
    """(step, loss, checksum of the sample ids) of every step, as metrics.jsonl has them."""
    return [(m["step"], m["train/loss"], m["train/ids"]) for m in metrics(run)]


def events(run: Path, kind: str = "") -> list[dict[str, Any]]:
    """Lines of events.jsonl, of one kind if given."""
    path = run / "events.jsonl"
    lines = [json.loads(x) for x in path.read_text().splitlines()] if path.exists() else []
    return [line for line in lines if kind in ("", line["kind"])]


def status(run: Path) -> dict[str, Any]:
    """status.json."""
    return json.loads((run / "status.json").read_text())


def saved_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint, or of a run's newest one, by kind/name."""
    reader = CheckpointReader(find_checkpoint(folder))
    return {key: reader.full(*key.split("/", 1)) for key in sorted(reader.index)}


def assert_same_weights(one: Path, two: Path) -> None:
    """Weights, moments, buffers and add-on state of two checkpoints, bit for bit."""
    a, b = saved_tensors(one), saved_tensors(two)
    assert a.keys() == b.keys()
    differing = [key for key in a if not torch.equal(a[key], b[key])]
    assert not differing, differing


def sample_ids(steps: int, seed: int = 0) -> list[list[int]]:
    """Ids of every global batch of `write_config`'s data, in order: what a faultless run sees."""
    order = Order(SHARDS, seed=seed, global_batch_size=BATCH, streams=STREAMS, window=WINDOW)
    batches = []
    for step in range(steps):
        epochs, places = order.draw(step * BATCH + torch.arange(BATCH).numpy())
        batches.append(order.locate(epochs, places)[2].tolist())
    return batches


def assert_exact_coverage(run: Path, steps: int = TOTAL_STEPS) -> None:
    """Every step of the run once, with its samples in their order; each once an epoch."""
    wanted, per_epoch = sample_ids(steps), sum(SHARDS) // BATCH
    seen = history(run)
    assert [step for step, _, _ in seen] == list(range(1, steps + 1))
    for (step, _, checksum), ids in zip(seen, wanted):
        assert checksum == batch_checksum(torch.tensor(ids).numpy(), 0), f"step {step}"
    for first in range(0, steps - per_epoch + 1, per_epoch):
        epoch = [i for ids in wanted[first : first + per_epoch] for i in ids]
        assert len(epoch) == len(set(epoch)) == per_epoch * BATCH
