"""The measured process does not outlive the one that measures."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

_PARENT = """
from clipkit.bench.measure import in_fresh_process
task = {"what": "loss_memory", "impl": "tiled", "batch": 65536, "dim": 512, "threads": 1}
in_fresh_process({**task, "device": "cpu", "dtype": "fp32", "scale": 10.0})
"""


def _measured(parent: int) -> list[int]:
    """Children of `parent` that already run the measured module."""
    text = Path(f"/proc/{parent}/task/{parent}/children").read_text()
    of_us = [int(pid) for pid in text.split()]
    return [p for p in of_us if b"clipkit.bench.child" in Path(f"/proc/{p}/cmdline").read_bytes()]


def test_a_killed_bench_leaves_no_child() -> None:
    parent = subprocess.Popen([sys.executable, "-c", _PARENT])
    deadline = time.monotonic() + 60
    children: list[int] = []
    while not children and time.monotonic() < deadline:
        time.sleep(0.05)
        children = _measured(parent.pid)
    time.sleep(1.0)  # its first line has run; torch may still be loading
    parent.kill()
    parent.wait()
    assert children
    while _runs(children[0]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(children[0])


def _runs(pid: int) -> bool:
    try:
        return b"clipkit.bench.child" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def test_a_task_of_retrieval_is_found() -> None:
    task = {"what": "retrieval_time", "impls": ["one_way"], "repeats": 1, "threads": 1}
    task |= {"device": "cpu", "dim": 8, "batch": 32, "case": "paired"}
    words = [sys.executable, "-m", "clipkit.bench.child", json.dumps(task)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
    assert "recall" in json.loads(done.stdout.splitlines()[-1])
