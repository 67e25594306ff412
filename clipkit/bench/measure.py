"""Clock and memory of one process, and processes started to be measured."""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clipkit.errors import ClipkitError

_ROOT = Path(__file__).resolve().parents[2]
_CODE = ("clipkit", "data_tools", "configs")
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Usage:
    """What a call cost: seconds of all its threads, seconds on the wall."""

    cpu_s: float
    wall_s: float


def timed(call: Callable[[], object], device: str = "cpu") -> Usage:
    """Run `call` once; on a GPU, until it has finished there."""
    before, begin = _cpu_seconds(), time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return Usage(_cpu_seconds() - before, time.perf_counter() - begin)


def by_turns(
    calls: Mapping[str, Callable[[], object]], repeats: int, device: str = "cpu"
) -> dict[str, list[tuple[float, float]]]:
    """(cpu, wall) seconds of each call, one after the other: all see the same machine."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            usage = timed(call, device)
            times[name].append((usage.cpu_s, usage.wall_s))
    return times


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def extra_mb(call: Callable[[], object], device: str = "cpu") -> float:
    """Peak memory during `call` minus memory just before it, MB: of the process, or of the GPU."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    _CLEAR.write_text("5")  # the high-water mark starts anew
    before_kb = _status_kb("VmRSS")
    call()
    return (_status_kb("VmHWM") - before_kb) * 1024 / 1e6


def _status_kb(key: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1])
    raise ClipkitError(f"{_STATUS} has no {key}; memory is measured on Linux only")


def free_mb() -> float:
    """Memory a new process could use."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024 / 1e6
    return float("inf")


def in_fresh_process(task: dict[str, Any]) -> Any:
    """Run `clipkit.bench.child` on a task and return its answer.

    Raises:
        ClipkitError: The process failed; with the last line it wrote.
    """
    command = [sys.executable, "-m", "clipkit.bench.child", json.dumps(task)]
    env = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}  # spinning threads would count as work
    done = subprocess.run(command, capture_output=True, text=True, env=env)  # noqa: S603
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise ClipkitError(f"bench {task['what']} {task.get('impl', '')}: {lines[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def machine(threads: int, device: str) -> dict[str, Any]:
    """What the numbers depend on."""
    name = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            name = line.split(":", 1)[1].strip()
            break
    if device == "cuda":
        name = torch.cuda.get_device_name()
    return {
        "machine": name,
        "threads": threads,
        "torch": torch.__version__,
        "commit": _commit(),
    }


def _commit() -> str:
    """Of the checkout, with "+changes" where its code or configs are not those of the commit."""
    commit = _git("describe", "--always", "--abbrev=12")
    changed = _git("status", "--porcelain", "--untracked-files=normal", "--", *_CODE)
    return f"{commit}+changes" if commit and changed else commit


def _git(*words: str) -> str:
    try:
        command = ["git", "-C", str(_ROOT), *words]
        done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
    except OSError:
        return ""
    return done.stdout.strip()
