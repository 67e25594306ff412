"""Checkpoints without a run: a few known tensors, written by one or several pretended ranks."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as torch_dist
from torch import Tensor

from clipkit.checkpoint.host_copy import Slice
from clipkit.checkpoint.saver import Saver
from clipkit.dist.group import World

STATE = {"step": 3, "loader": {"mode": "indexed"}}
CONFIG = {"model_cfg": {"embed_dim": 4}, "preprocess_cfg": {}}


def tensors() -> dict[tuple[str, str], Tensor]:
    """What `write_run` stores, by (kind, name)."""
    return {
        ("weight", "a"): torch.arange(12.0).reshape(3, 4),
        ("exp_avg", "a"): -torch.arange(12.0).reshape(3, 4),
        ("weight", "scale"): torch.tensor(2.5),
        ("buffer", "count"): torch.tensor([7, 8, 9]),
    }


def slices_of(rank: int, world_size: int) -> list[Slice]:
    """This rank's even share of every tensor."""
    out = []
    for (kind, name), tensor in tensors().items():
        flat = tensor.flatten()
        size = -(-flat.numel() // world_size)
        part = flat[rank * size : (rank + 1) * size]
        out.append(Slice(kind, name, tuple(tensor.shape), rank * size, part))
    return out


class ThreadWorld(World):
    """One of several ranks that live in threads of this process."""

    def __init__(
        self,
        rank: int,
        world_size: int,
        barrier: threading.Barrier,
        board: dict[int, int],
        store: torch_dist.Store,
    ) -> None:
        super().__init__(rank=rank, world_size=world_size, store=store)
        self._barrier, self._board = barrier, board

    def _exchange(self, value: int) -> list[int]:
        self._board[self.rank] = value
        self._barrier.wait(20)
        values = [self._board[r] for r in range(self.world_size)]
        self._barrier.wait(20)
        return values

    def max_int(self, value: int) -> int:
        """As World."""
        return max(self._exchange(value))

    def broadcast_int(self, value: int) -> int:
        """As World."""
        return self._exchange(value)[0]


def write_checkpoint(
    run_dir: str | Path,
    step: int,
    *,
    slices: Iterable[Slice],
    state: dict[str, Any],
    model_config: dict[str, Any],
    world: World,
    keep: int = 2,
) -> Path:
    """One save by all ranks, tried once; raises CheckpointError on all of them if it failed."""
    saver = Saver(run_dir, world, keep=keep, background=False)
    saver.save(step, slices=slices, state=state, model_config=model_config)
    saver.wait(())
    assert saver.last is not None
    return saver.last


def write_run(run: Path, step: int, world_size: int = 1, keep: int = 9) -> Path:
    """A finished checkpoint, written by `world_size` ranks."""
    errors = write_in_threads(run, step, world_size, keep=keep)
    assert not any(errors), errors
    return run / "checkpoints" / f"step_{step:08d}"


def write_in_threads(
    run: Path, step: int, world_size: int, **options: Any
) -> list[BaseException | None]:
    """What each rank's write_checkpoint raised."""
    barrier, board = threading.Barrier(world_size), {}
    store = torch_dist.HashStore()
    errors: list[BaseException | None] = [None] * world_size

    def work(rank: int) -> None:
        world = World() if world_size == 1 else ThreadWorld(rank, world_size, barrier, board, store)
        slices = slices_of(rank, world_size)
        try:
            write_checkpoint(
                run, step, slices=slices, state=STATE, model_config=CONFIG, world=world, **options
            )
        except BaseException as error:
            errors[rank] = error

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return errors
