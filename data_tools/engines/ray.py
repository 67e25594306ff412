"""Ray core tasks: on this machine, or on the cluster that RAY_ADDRESS names.

On a cluster clipkit must be installed on every node, and shards and output folder must be on
storage that all nodes share under the same paths.
"""

from __future__ import annotations

import logging
import os
import sys
from collections import deque
from collections.abc import Generator, Sequence
from typing import Any

from clipkit.errors import ConfigError
from data_tools.engines.task import Outcome, Task, run_task


def run(tasks: Sequence[Task], workers: int | None) -> Generator[tuple[int, Outcome], None, None]:
    """(number, outcome) of each task as it is done; `workers` defaults to the CPUs Ray knows of.

    Raises:
        ConfigError: The cluster does not answer.
    """
    import ray

    ours = not ray.is_initialized()
    if ours:
        _start(workers)
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


def _start(workers: int | None) -> None:
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "RAY_ADDRESS" in os.environ:
        try:
            ray.init(address="auto", **quiet)
        except (ConnectionError, RuntimeError) as error:
            line = str(error).splitlines()[0]
            raise ConfigError(
                f"RAY_ADDRESS={os.environ['RAY_ADDRESS']}: no cluster answers ({line})"
            ) from None
        return
    ray.init(
        num_cpus=workers or len(os.sched_getaffinity(0)),
        include_dashboard=False,
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}},
        **quiet,
    )
