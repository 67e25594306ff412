"""The process group, and a side channel that ends all ranks when one fails.

A rank that raises while the others wait in a collective would leave them there until the time-out.
Instead it writes its exit status to the store; a thread in every other rank reads it and exits.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as torch_dist

from clipkit.dist.env import RankEnv, read_env
from clipkit.errors import ConfigError

_POLL_S = 0.3
_LINGER_S = 5.0
_FOLLOW_S = 2.0
HANG_KEY = "hang"  # in the store: the watchdog's verdict


@dataclass
class World:
    """This rank among the others.

    Attributes:
        rank: 0 .. world_size - 1.
        world_size: Number of ranks.
        local_rank: Rank within the node.
        device: Where this rank computes.
        store: Key-value store shared by all ranks; None for a single process.
        num_nodes: Machines the ranks are spread over.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    store: torch_dist.Store | None = None
    num_nodes: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this rank writes logs and indexes."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            self.max_int(0)

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """All-reduce in place by sum, without gradient."""
        if self.world_size > 1:
            torch_dist.all_reduce(tensor)
        return tensor

    def max_int(self, value: int) -> int:
        """The largest `value` over ranks."""
        tensor = torch.tensor([value], dtype=torch.int64, device=self.device)
        if self.world_size > 1:
            torch_dist.all_reduce(tensor, op=torch_dist.ReduceOp.MAX)
        return int(tensor)

    def broadcast_int(self, value: int) -> int:
        """Rank 0's `value` on every rank."""
        tensor = torch.tensor([value], dtype=torch.int64, device=self.device)
        if self.world_size > 1:
            torch_dist.broadcast(tensor, src=0)
        return int(tensor)


def pick_device(wanted: str, local_rank: int) -> torch.device:
    """"auto": this rank's GPU where there is one, else the CPU."""
    if wanted not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device '{wanted}': choose auto, cpu or cuda")
    count = torch.cuda.device_count()
    if local_rank >= count and (wanted == "cuda" or (wanted == "auto" and count)):
        raise ConfigError(
            f"train.device={wanted}: local rank {local_rank} needs a GPU of its own, {count} are visible; "
            f"start fewer processes or set train.device=cpu"
        )
    if wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available()):
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    return torch.device("cpu")


def setup(env: RankEnv | None = None, *, device: str = "auto", timeout_s: float = 600.0) -> World:
    """Join the process group described by the environment (also of one process: DeepSpeed wants one).

    Args:
        env: Rank and meeting point; None reads the environment.
        device: "auto", "cpu" or "cuda".
        timeout_s: Seconds after which a collective fails.
    """
    env = env or read_env()
    chosen = pick_device(device, env.local_rank)
    timeout = timedelta(seconds=timeout_s)
    os.environ["LOCAL_RANK"] = str(env.local_rank)
    if env.world_size == 1:
        store: torch_dist.Store = torch_dist.HashStore()
    else:
        os.environ.update(
            RANK=str(env.rank), WORLD_SIZE=str(env.world_size),
            MASTER_ADDR=env.master_addr, MASTER_PORT=str(env.master_port),
        )
        store, _, _ = next(torch_dist.rendezvous("env://", timeout=timeout))
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    torch_dist.init_process_group(
        backend, store=torch_dist.PrefixStore("group", store), rank=env.rank,
        world_size=env.world_size, timeout=timeout,
    )
    shared = None if env.world_size == 1 else torch_dist.PrefixStore("clipkit", store.clone())
    num_nodes = -(-env.world_size // max(1, env.local_world_size))
    return World(env.rank, env.world_size, env.local_rank, chosen, shared, num_nodes)


def teardown() -> None:
    """Leave the process group, if any."""
    if torch_dist.is_initialized():
        torch_dist.destroy_process_group()


def aside(work: Callable[[], object], wait_s: float = 0.0) -> None:
    """Do something that may fail or hang in a thread of its own, and wait for it no longer."""

    def quietly() -> None:
        with contextlib.suppress(Exception):
            work()

    thread = threading.Thread(target=quietly, name="clipkit-aside", daemon=True)
    thread.start()
    thread.join(wait_s)


class AbortWatch:
    """Ends this process when another rank has announced a failure, and announces this rank's own.

    Args:
        world: The ranks.
        on_leave: Called with (exit status, what the other rank said) before this process ends.
    """

    def __init__(self, world: World, on_leave: Callable[[int, str], None] | None = None) -> None:
        self._world, self._on_leave = world, on_leave
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="clipkit-abort-watch", daemon=True)
        if world.store is not None:
            self._thread.start()

    def _announced(self) -> int | None:
        store = self._world.store
        assert store is not None
        if not store.check(["abort"]):
            return None
        return int(store.get("abort"))

    def _poll(self) -> None:
        while not self._stop.wait(_POLL_S):
            try:
                status = self._announced()
            except (RuntimeError, ValueError):  # the store left with its host: that rank has ended
                return
            if status is not None:
                self._leave(status)

    def _leave(self, status: int) -> None:
        store = self._world.store
        assert store is not None
        with contextlib.suppress(RuntimeError):
            why = store.get("why").decode() if store.check(["why"]) else ""
            if self._on_leave is not None:
                on_leave = self._on_leave
                aside(lambda: on_leave(status, why), wait_s=_LINGER_S / 2)
            store.add("left", 1)
        with contextlib.suppress(OSError):  # nobody reads it any more
            sys.stderr.flush()
        os._exit(status)

    def is_first(self) -> bool:
        """Whether no other rank has said yet what went wrong."""
        store = self._world.store
        try:
            return store is None or store.add("told", 1) == 1
        except RuntimeError:
            return True

    def announce(self, status: int, why: str = "") -> None:
        """Tell the other ranks to exit with `status`; the store's host waits until they have."""
        self._stop.set()
        store = self._world.store
        if store is None:
            return
        with contextlib.suppress(RuntimeError):
            if why:
                store.set("why", why)
            store.set("abort", str(status))
            deadline = time.monotonic() + _LINGER_S
            while store.add("left", 0) < self._world.world_size - 1 and time.monotonic() < deadline:
                time.sleep(0.05)

    def follow(self) -> None:
        """After a failed collective: if another rank announced a failure, exit as it did.

        Where ranks end because one hangs, this rank's own watchdog ends it too.
        """
        store = self._world.store
        if store is None:
            return
        deadline = time.monotonic() + _FOLLOW_S
        while time.monotonic() < deadline:
            try:
                status = self._announced()
                if store.check([HANG_KEY]):
                    deadline = time.monotonic() + _FOLLOW_S
            except (RuntimeError, ValueError):
                return
            if status is not None:
                self._leave(status)
            time.sleep(0.1)

    def close(self) -> None:
        """Stop watching."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(1.0)  # it may be in a store that does not answer
