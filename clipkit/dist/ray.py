"""Ray, where a user asks for it: on this machine, or on the cluster that RAY_ADDRESS names."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

from clipkit.errors import ConfigError


def start(workers: int | None = None) -> bool:
    """Join the cluster that RAY_ADDRESS names, or start Ray here; it ends with this process.

    Args:
        workers: CPUs of Ray started here; default: all that this process may use.

    Returns:
        Whether it was not running before.

    Raises:
        ConfigError: The cluster does not answer.
    """
    import ray

    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = os.environ.get("RAY_ADDRESS")
    if address is None:
        ray.init(
            num_cpus=workers or len(os.sched_getaffinity(0)),
            include_dashboard=False,
            runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}},
            **quiet,
        )
        return True
    try:
        ray.init(address="auto", **quiet)
    except (ConnectionError, RuntimeError) as error:
        line = str(error).splitlines()[0]
        raise ConfigError(f"RAY_ADDRESS={address}: no cluster answers ({line})") from None
    return True
