"""A rank that hangs or is stopped ends the job, by name; one that is slow is told of."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as torch_dist

from clipkit.dist.beats import Beat
from clipkit.dist.group import World
from clipkit.dist.watchdog import Watchdog, group_timeout
from clipkit.errors import HANG_STATUS


def start(folder: Path, fault: str) -> list[subprocess.Popen[str]]:
    """Two ranks; rank 0 hosts the store."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tests.dist.hanging", str(rank), str(port), str(folder)],
            env={
                **os.environ,
                "CLIPKIT_FAULT": fault,
                "PYTHONPATH": str(Path(__file__).parents[2]),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]


def test_a_stopped_rank_is_named(tmp_path: Path) -> None:
    """Rank 1, and rank 0 with the store: nobody's store calls come back any more."""
    runs = {culprit: start(tmp_path / str(culprit), f"stop@{culprit}:3") for culprit in (0, 1)}
    for culprit, ranks in runs.items():
        try:
            out, err = ranks[1 - culprit].communicate(timeout=100)
        finally:
            ranks[culprit].kill()
            ranks[culprit].communicate()
        assert ranks[1 - culprit].returncode == HANG_STATUS, err
        pid = ranks[culprit].pid
        assert (
            f"hang from {1 - culprit}: training hangs in step 3: rank {culprit} (pid {pid}" in out
        )
        assert "silent for" in out and f"kill -9 pid {pid} on" in out
        stacks = (tmp_path / str(culprit) / "hang" / f"rank_{1 - culprit:05d}.txt").read_text()
        assert "training hangs" in stacks and "in barrier" in stacks
        assert "Traceback" not in err


@pytest.mark.slow
def test_a_hanging_main_thread_is_named_by_all(tmp_path: Path) -> None:
    for culprit in (0, 1):
        ranks = start(tmp_path / str(culprit), f"hang@{culprit}:3")
        out, _ = zip(*(rank.communicate(timeout=100) for rank in ranks))
        assert [rank.returncode for rank in ranks] == [HANG_STATUS] * 2
        assert f"training hangs in step 3: rank {culprit} (pid {ranks[culprit].pid}" in out[0]
        assert "step 3, phase data, strike (faults.py:" in out[0] and "kill" not in out[0]
        assert out[1] == ""  # one rank speaks
        for rank in (0, 1):
            line = "in strike" if rank == culprit else "in barrier"
            file = tmp_path / str(culprit) / "hang" / f"rank_{rank:05d}.txt"
            assert line in file.read_text()


@pytest.mark.slow
def test_a_slow_rank_is_told_of_and_trains_on(tmp_path: Path) -> None:
    ranks = start(tmp_path, "sleep@1:0:0.5")
    out, err = zip(*(rank.communicate(timeout=100) for rank in ranks))
    assert [rank.returncode for rank in ranks] == [0, 0], err
    assert f"straggler from 0: slow: rank 1 (pid {ranks[1].pid} on" in out[0]
    assert not (tmp_path / "hang").exists()


class Clock:
    """time.monotonic by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("clipkit.dist.watchdog.time.monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def silent(kind: str, text: str, values: dict[str, Any]) -> None:
    """Tells nobody."""


def test_the_first_of_a_kind_and_long_phases_may_take_longer(clock: Clock, tmp_path: Path) -> None:
    watchdog = Watchdog(World(), tmp_path, timeout_s=10, tell=silent)
    waits = []
    for phase in ("data", "step", "data", "eval", "step", "eval", "save", "save"):
        watchdog.at(phase, 1)
        begin = clock.now
        while not watchdog._judge():
            clock.now += 1
        waits.append(clock.now - begin)
    assert waits == [61, 61, 11, 61, 11, 31, 61, 31]
    assert group_timeout(10) > max(waits)


def test_time_in_which_the_machine_slept_does_not_count(clock: Clock, tmp_path: Path) -> None:
    watchdog = Watchdog(World(), tmp_path, timeout_s=10, tell=silent)
    for step in (0, 1):
        watchdog.at("data", step)
    clock.now += 9
    assert not watchdog._judge()
    clock.now += 3600
    watchdog._forgive(3600)
    assert not watchdog._judge()
    clock.now += 2
    assert watchdog._judge()


def test_rank_0_is_judged_by_the_others_and_all_by_rank_0(clock: Clock, tmp_path: Path) -> None:
    store: Any = object()
    for rank, named in ((0, [2]), (1, [0])):
        watchdog = Watchdog(World(rank, 3, rank, store=store), tmp_path, timeout_s=10, tell=silent)
        for step in (3, 4):
            watchdog.at("step", step)
        for other in {0, 1, 2} - {rank}:
            watchdog._heard[other] = Beat(other, pid=9, step=4), clock.now - 3 * (other == 2)
        clock.now += 8
        assert [s.beat.rank for s in watchdog._judge()] == ([2] if rank == 0 else [])
        clock.now += 3
        assert [s.beat.rank for s in watchdog._judge()][-1:] == named


def test_without_the_store_a_rank_judges_itself(clock: Clock, tmp_path: Path) -> None:
    """Rank 0 was killed before this rank heard of it, or after it had left."""
    for phase, named in (("start", 0), ("left", 1)):
        store: Any = object()
        watchdog = Watchdog(World(1, 2, 1, store=store), tmp_path, timeout_s=10, tell=silent)
        for step in (3, 4):
            watchdog.at("step", step)
        watchdog._heard[0] = Beat(0, phase=phase, allowed=60), clock.now
        clock.now += 11
        assert not watchdog._judge()
        watchdog._deaf = True
        assert [s.beat.rank for s in watchdog._judge()] == [named]
        watchdog.at("step", 5)
        assert not watchdog._judge()


def test_a_rank_that_is_done_is_not_silent(clock: Clock, tmp_path: Path) -> None:
    for rank in (0, 1):
        store: Any = object()
        watchdog = Watchdog(World(rank, 2, rank, store=store), tmp_path, timeout_s=10, tell=silent)
        for phase, named in (("save", [1 - rank]), ("left", [])):
            watchdog.at("save", 5)
            watchdog._heard[1 - rank] = Beat(1 - rank, pid=9, step=5, phase=phase), clock.now
            clock.now += 15
            assert [s.beat.rank for s in watchdog._judge()] == named


def test_leaving_is_the_last_beat(tmp_path: Path) -> None:
    store = torch_dist.PrefixStore("clipkit", torch_dist.FileStore(str(tmp_path / "store"), 1))
    world = World(0, 1, 0, store=store)
    with Watchdog(world, tmp_path, timeout_s=60, tell=silent) as watchdog:
        watchdog.at("step", 3)
    beat = Beat.load(store.get("beat/0"))
    assert (beat.phase, beat.step, beat.pid) == ("left", 3, os.getpid())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_process_alone_ends_with_stacks_even_if_telling_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()

    def leave(status: int) -> None:
        assert status == HANG_STATUS
        ended.set()
        sys.exit()

    def broken(kind: str, text: str, values: dict[str, Any]) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("clipkit.dist.watchdog.os._exit", leave)
    with Watchdog(World(), tmp_path, timeout_s=0.5, tell=broken) as watchdog:
        for step in (0, 1):
            watchdog.at("data", step)
        assert ended.wait(60) and watchdog.ending
    text = (tmp_path / "hang" / "rank_00000.txt").read_text()
    assert "test_a_process_alone_ends" in text and "step 1, phase data" in text


@pytest.mark.slow
def test_code_that_keeps_the_interpreter_to_itself_ends_too(tmp_path: Path) -> None:
    code = f"""
import re, clipkit.dist.watchdog as w
from pathlib import Path
w._MARGIN_S = 0.5
with w.Watchdog(w.World(), Path({str(tmp_path)!r}), timeout_s=0.5, tell=print) as dog:
    dog.at("data", 0)
    import time; time.sleep(1)
    re.match(r"(a+)+$", "a" * 60 + "b")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 1 and "Timeout" in done.stderr and "match" in done.stderr
