"""A rank that trains nothing under a watchdog: `python -m tests.dist.hanging RANK PORT FOLDER`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from clipkit import faults
from clipkit.dist import group
from clipkit.dist.env import RankEnv
from clipkit.dist.watchdog import Watchdog, group_timeout

TIMEOUT_S = 2.0


def main(rank: int, port: int, folder: Path, ranks: int = 2) -> None:
    """Eight steps of two marks, with what CLIPKIT_FAULT asks for."""
    env = RankEnv(rank, ranks, rank, ranks, "127.0.0.1", port, "slurm")
    world = group.setup(env, device="cpu", timeout_s=group_timeout(TIMEOUT_S))
    watch = group.AbortWatch(world)

    def tell(kind: str, text: str, values: dict[str, object]) -> None:
        print(f"{kind} from {rank}: {text}", flush=True)

    try:
        with Watchdog(world, folder, timeout_s=TIMEOUT_S, tell=tell) as watchdog:
            for step in range(8):
                watchdog.at("data", step)
                begin = time.perf_counter()
                faults.strike(rank, step)
                time.sleep(0.1)
                watchdog.busy(time.perf_counter() - begin)
                watchdog.at("step", step)
                world.barrier()
            if watchdog.stragglers:
                print(watchdog.stragglers[0])
    except RuntimeError:
        watch.follow()
        raise


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
