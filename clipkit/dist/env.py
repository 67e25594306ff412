"""Rank, world size and meeting point from the environment: torchrun, SLURM, or one process alone."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from clipkit.errors import ConfigError


@dataclass(frozen=True)
class RankEnv:
    """Where this process stands. `source` is "torchrun", "slurm" or "single"."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    master_addr: str
    master_port: int
    source: str


def first_host(nodelist: str) -> str:
    """First host of a SLURM node list: "gpu[003-007,9],cpu1" -> "gpu003"."""
    match = re.match(r"^[^\[\],]+(?:\[[^\[\]]+\][^\[\],]*)*", nodelist.strip())
    if not match:
        raise ConfigError(f"SLURM_JOB_NODELIST='{nodelist}' is not a node list; export MASTER_ADDR instead")
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", match.group())


def _number(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = env.get(name)
    if text is None and default is not None:
        return default
    try:
        return int(text or "")
    except ValueError:
        raise ConfigError(f"environment variable {name}={text!r} is not a whole number; set or unset it") from None


def read_env(env: Mapping[str, str] | None = None) -> RankEnv:
    """Read RANK/WORLD_SIZE/... (torchrun), else SLURM_PROCID/SLURM_NTASKS/..., else a single process.

    Raises:
        ConfigError: A variable is missing or malformed; names it.
    """
    env = os.environ if env is None else env
    if "WORLD_SIZE" in env:
        world = _number(env, "WORLD_SIZE")
        result = RankEnv(
            rank=_number(env, "RANK", 0),
            world_size=world,
            local_rank=_number(env, "LOCAL_RANK", 0),
            local_world_size=_number(env, "LOCAL_WORLD_SIZE", 1),
            master_addr=env.get("MASTER_ADDR", "127.0.0.1"),
            master_port=_number(env, "MASTER_PORT", 29500),
            source="torchrun",
        )
    elif "SLURM_PROCID" in env and _number(env, "SLURM_NTASKS", 1) > 1:
        tasks = _number(env, "SLURM_NTASKS")
        per_node = re.match(r"\d+", env.get("SLURM_TASKS_PER_NODE", env.get("SLURM_NTASKS_PER_NODE", "1")))
        result = RankEnv(
            rank=_number(env, "SLURM_PROCID"),
            world_size=tasks,
            local_rank=_number(env, "SLURM_LOCALID", 0),
            local_world_size=int(per_node.group()) if per_node else 1,
            master_addr=env.get("MASTER_ADDR") or first_host(env.get("SLURM_JOB_NODELIST", "127.0.0.1")),
            master_port=_number(env, "MASTER_PORT", 20000 + _number(env, "SLURM_JOB_ID", 9500) % 20000),
            source="slurm",
        )
    else:
        return RankEnv(0, 1, 0, 1, "127.0.0.1", 0, "single")
    if result.world_size < 1 or not 0 <= result.rank < result.world_size:
        raise ConfigError(f"rank {result.rank} of world size {result.world_size} is impossible; check the launcher")
    return result
