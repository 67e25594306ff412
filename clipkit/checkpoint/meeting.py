"""Where the ranks' writers meet: keys of the store, because a thread must not use collectives."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

import torch.distributed as torch_dist

from clipkit.dist.group import World

_POLL_S = 0.05


class Meeting:
    """Every rank hands in its part of a write, rank 0 collects them and announces how it went.

    Writes are numbered 0, 1, ... alike on all ranks. Made by all ranks together.

    Args:
        world: The ranks; several of them need a store.
        patience_s: After this long a part or an announcement is taken for lost.
    """

    def __init__(self, world: World, patience_s: float = 7200.0) -> None:
        assert world.store is not None or world.world_size == 1
        self.id = f"{world.broadcast_int(uuid.uuid4().int >> 66):x}"
        self._ranks, self._rank, self._patience_s = world.world_size, world.rank, patience_s
        store = torch_dist.HashStore() if world.store is None else world.store.clone()
        self._store = torch_dist.PrefixStore(f"save/{self.id}", store)

    def hand_in(self, number: int, part: dict[str, Any]) -> None:
        """This rank's part, JSON-able."""
        self._store.set(f"{number}/part/{self._rank}", json.dumps(part))

    def collect(self, number: int) -> list[dict[str, Any]]:
        """On rank 0: all parts, in rank order.

        Raises:
            TimeoutError: A rank did not hand in its part.
        """
        keys = [f"{number}/part/{rank}" for rank in range(self._ranks)]
        self._wait(keys)
        parts = [json.loads(self._store.get(key)) for key in keys]
        for key in (*keys, f"{number - 1}/outcome"):  # who hands in has heard how the last one went
            self._store.delete_key(key)
        return parts

    def announce(self, number: int, outcome: str) -> None:
        """On rank 0: tell all ranks; "" is a success."""
        self._store.set(f"{number}/outcome", outcome)

    def outcome(self, number: int) -> str:
        """What rank 0 announced; waits for it.

        Raises:
            TimeoutError: Rank 0 announced nothing.
        """
        self._wait([f"{number}/outcome"])
        return self._store.get(f"{number}/outcome").decode()

    def _wait(self, keys: list[str]) -> None:
        deadline = time.monotonic() + self._patience_s
        while not self._store.check(keys):
            if time.monotonic() > deadline:
                missing = [key for key in keys if not self._store.check([key])]
                raise TimeoutError(f"no word from {', '.join(missing)} in {self._patience_s:.0f} s")
            time.sleep(_POLL_S)
