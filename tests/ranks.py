"""A pool of gloo ranks for tests: torch, open_clip and DeepSpeed are imported once for many cells.

`pool.run(function, *args)` calls a top-level function `function(world, *args)` on every rank and
returns their results in rank order. A failure or a time-out ends the ranks; the next run starts new
ones.
"""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
import traceback
from datetime import timedelta
from typing import Any

import torch.multiprocessing as mp

COLLECTIVE_TIMEOUT_S = 30
CELL_TIMEOUT_S = 180


def _serve(rank: int, world_size: int, rendezvous: str, connection: Any) -> None:
    os.environ.update(
        OMP_NUM_THREADS="1",
        DS_ACCELERATOR="cpu",
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK=str(rank),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT="1",
        HF_HUB_OFFLINE="1",
    )
    import torch
    import torch.distributed as dist

    from clipkit.dist.group import World

    torch.set_num_threads(1)
    store = dist.FileStore(rendezvous, world_size)
    timeout = timedelta(seconds=COLLECTIVE_TIMEOUT_S)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timeout)
    world = World(rank, world_size, rank, store=dist.PrefixStore("clipkit", store.clone()))
    while True:
        message = connection.recv()
        if message is None:
            break
        module, name, args = message
        try:
            function = getattr(importlib.import_module(module), name)
            connection.send(("ok", function(world, *args)))
        except BaseException:  # noqa: BLE001  (reported to the test that asked)
            connection.send(("error", traceback.format_exc()))
    dist.destroy_process_group()


class RankPool:
    """Ranks that stay up between cells."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self._processes: list[Any] = []
        self._connections: list[Any] = []

    def run(self, function: Any, *args: Any) -> list[Any]:
        """Results of `function(world, *args)` by rank; raises with the failing rank's traceback."""
        if not self._processes:
            self._start()
        for connection in self._connections:
            connection.send((function.__module__, function.__qualname__, args))
        results, problems = [], []
        for rank, connection in enumerate(self._connections):
            if not connection.poll(CELL_TIMEOUT_S if not problems else 5):
                problems.append(f"rank {rank}: no answer")
                continue
            try:
                status, value = connection.recv()
            except EOFError:
                status, value = "error", "the process ended"
            (results if status == "ok" else problems).append(value)
        if problems:
            self.close(kill=True)
            raise AssertionError("\n".join(problems))
        return results

    def close(self, kill: bool = False) -> None:
        """End the ranks."""
        for process, connection in zip(self._processes, self._connections):
            if kill:
                process.kill()
            else:
                connection.send(None)
            process.join(10)
            if process.is_alive():
                process.kill()
        self._processes, self._connections = [], []
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self) -> None:
        context = mp.get_context("spawn")
        self._folder = tempfile.mkdtemp(prefix="clipkit-ranks-")
        rendezvous = os.path.join(self._folder, "store")
        for rank in range(self.world_size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(rank, self.world_size, rendezvous, theirs), daemon=True
            )
            process.start()
            self._processes.append(process)
            self._connections.append(ours)
