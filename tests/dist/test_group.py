"""The process group, and the side channel that ends all ranks."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import torch

from clipkit.dist.group import AbortWatch, World, pick_device
from clipkit.errors import ConfigError

_WAITER = """
import os, sys, time
import torch.distributed as dist
from clipkit.dist import group
from clipkit.dist.env import RankEnv
rank = int(sys.argv[1])
world = group.setup(RankEnv(rank, 2, rank, 2, "127.0.0.1", int(sys.argv[2]), "slurm"), device="cpu", timeout_s=120)
watch = group.AbortWatch(world, on_leave=lambda status, why: print(rank, "leaves:", status, why, flush=True))
world.barrier()
if rank == int(sys.argv[3]):
    watch.announce(7, "no shards")
    os._exit(7)
world.barrier()  # never joined by the other
"""


def _numbers(world: World) -> tuple[int, int, float]:
    total = world.sum_(torch.tensor([float(world.rank + 1)])).item()
    return world.max_int(world.rank), world.broadcast_int(world.rank + 5), total


def test_small_agreements(ranks) -> None:  # type: ignore[no-untyped-def]
    assert ranks(2).run(_numbers) == [(1, 5, 3.0), (1, 5, 3.0)]
    assert _numbers(World()) == (0, 5, 1.0)


def test_a_failing_rank_ends_the_others_with_its_status() -> None:
    for failing in (0, 1):  # rank 0 hosts the store: it must wait for the other to read it
        port = str(21000 + int(time.time() * 10) % 9000 + failing)
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", _WAITER, str(rank), port, str(failing)], stdout=subprocess.PIPE, text=True
            )
            for rank in (0, 1)
        ]
        told = [p.communicate(timeout=120)[0] for p in processes]
        assert [p.returncode for p in processes] == [7, 7]
        assert told[1 - failing] == f"{1 - failing} leaves: 7 no shards\n" and told[failing] == ""


def test_watch_of_a_single_process_does_nothing() -> None:
    watch = AbortWatch(World())
    watch.announce(3)
    watch.follow()
    watch.close()


def test_device() -> None:
    assert pick_device("cpu", 0) == torch.device("cpu")


def test_more_processes_than_gpus_are_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    for wanted in ("auto", "cuda"):
        with pytest.raises(ConfigError, match="local rank 1 needs a GPU of its own, 1 are visible"):
            pick_device(wanted, 1)
