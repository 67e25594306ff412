"""Ray core tasks: on this machine, or on the cluster that RAY_ADDRESS names.

On a cluster clipkit must be installed on every node, and shards and output folder must be on
storage that all nodes share under the same paths.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from typing import Any

from clipkit.dist.ray import start
from data_tools.engines.task import Outcome, Task, run_task


def run(tasks: Sequence[Task], workers: int | None) -> Generator[tuple[int, Outcome], None, None]:
    """(number, outcome) of each task as it is done; `workers` defaults to the CPUs Ray knows of.

    Raises:
        ConfigError: The cluster does not answer.
    """
    import ray

    ours = start(workers)
    waiting = deque(range(len(tasks)))
    flying: dict[Any, int] = {}
    remote = ray.remote(max_retries=0)(run_task)  # map_shards retries
    try:
        slots = workers or int(ray.cluster_resources().get("CPU", 1))
        while waiting or flying:
            while waiting and len(flying) < slots:
                number = waiting.popleft()
                flying[remote.remote(tasks[number])] = number
            for done in ray.wait(list(flying))[0]:
                number = flying.pop(done)
                try:
                    outcome = ray.get(done)
                except ray.exceptions.RayError as error:  # its worker died
                    outcome = Outcome(error=f"{type(error).__name__}: {str(error).splitlines()[0]}")
                yield number, outcome
    finally:
        for reference in flying:
            ray.cancel(reference, force=True)
        if ours:
            ray.shutdown()
