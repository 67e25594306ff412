"""Ends a run that hangs, with the rank, the step and the stacks, instead of waiting for a person.

Every rank has two threads. One tells the store how far the main thread is (`Beat`), and rank 0's
reads what all told. The other judges and never touches the store, which may hang itself when its
host is stopped. The verdict comes after `timeout_s` without progress, or without a word from a
rank; more is allowed where a phase is slow by nature. The process group's own time-out comes later.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch.distributed as torch_dist

from clipkit.dist.beats import Beat, Seen, hung, median_busy, slow, verdict
from clipkit.dist.group import HANG_KEY, World, aside
from clipkit.errors import HANG_STATUS

FOLDER = "hang"
LEFT = "left"  # phase of a rank that is done here
# first batch and first step build, fill caches and compile; these may always be long
_FIRST, _LONG = 6.0, {"start": 6.0, "eval": 3.0, "save": 3.0, "rollback": 3.0}
_PERIOD_S = 5.0
_LAST_WORDS_S = 8.0
_MARGIN_S = 60.0
_REPORT_EVERY_S = 600.0
_WINDOW, _ENOUGH = 20, 5
# where a main thread waits for the others; backward holds DDP's exchange of gradients
_WAITING_IN = ("/torch/distributed/", "/torch/autograd/graph.py", "/clipkit/dist/")

Tell = Callable[[str, str, dict[str, Any]], None]


def group_timeout(timeout_s: float) -> float:
    """Seconds for the process group's own collectives: after any verdict of the watchdog."""
    return _FIRST * timeout_s + _MARGIN_S


def end_if_stuck(seconds: float) -> None:
    """The interpreter's own clock: stacks on stderr and the end, unless it is set anew in time."""
    if sys.__stderr__ is not None:
        with contextlib.suppress(ValueError, OSError):
            faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__)


class Watchdog:
    """Context manager around everything that may hang; `at` and `busy` cost a few assignments.

    Args:
        world: The ranks; the store may be missing, then each rank judges itself.
        folder: The run folder; stacks go to its hang/rank_<k>.txt.
        timeout_s: Without progress for so long, the job ends.
        tell: Called with (kind, text, values) from another thread, on the rank that judges: "hang"
            (before the end; rank 0, or another one if rank 0 is silent) and "straggler".

    Attributes:
        stragglers: Ranks that hold up the others, in words; on rank 0.
    """

    def __init__(self, world: World, folder: Path, *, timeout_s: float, tell: Tell) -> None:
        self._world, self._folder, self._tell = world, folder, tell
        self.timeout_s, self._period = timeout_s, min(_PERIOD_S, timeout_s / 8)
        self.stragglers: list[str] = []
        self._busy: deque[float] = deque(maxlen=_WINDOW)
        self._met: set[str] = set()
        self._mark = (0, 0, "start", time.monotonic(), _FIRST * timeout_s)
        self._main = threading.get_ident()
        self._threads: list[threading.Thread] = []
        self._stop, self._arming = threading.Event(), threading.Lock()
        self._ending = threading.Lock()  # taken once, by the thread that ends the process
        now, late = time.monotonic(), _FIRST * timeout_s
        self._heard = {r: (Beat(r, allowed=late), now) for r in range(world.world_size)}
        self._store: torch_dist.Store | None = None
        self._deaf = False  # the store is gone, or does not answer
        self._verdict: str | None = None
        self._published = threading.Event()
        self._speaks = world.rank <= 1  # where the store cannot say who does
        self._last_report = -_REPORT_EVERY_S
        self._reported: list[int] = []

    def __enter__(self) -> Watchdog:
        self._main = threading.get_ident()
        work = {"clipkit-watchdog": self._watch}
        if self._world.store is not None:
            work["clipkit-beats"] = self._talk
        for name, target in work.items():
            self._threads.append(threading.Thread(target=target, name=name, daemon=True))
            self._threads[-1].start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._arming:
            self._stop.set()
            faulthandler.cancel_dump_traceback_later()
        for thread in self._threads:
            thread.join(1.0)  # one that is in the store may stay there

    def at(self, phase: str, step: int) -> None:
        """The main thread is here now; all ranks pass the same marks. Long phases call it often."""
        before = self._mark
        first = phase not in self._met
        if first:
            self._met.add(phase)
        allowed = (_FIRST if first else _LONG.get(phase, 1.0)) * self.timeout_s
        mark = before[1] + 1 if before[0] == step else 0
        self._mark = (step, mark, phase, time.monotonic(), allowed)

    def busy(self, seconds: float) -> None:
        """This rank's own time in a step, before it first waits for the others."""
        self._busy.append(seconds)

    @property
    def ending(self) -> bool:
        """Whether a verdict is being carried out: this process ends within seconds."""
        return self._ending.locked()

    # the thread that talks

    def _talk(self) -> None:
        assert self._world.store is not None
        try:
            store = self._world.store.clone()  # a connection of its own: others wait in theirs
            store.set_timeout(timedelta(seconds=max(1.0, self.timeout_s)))
            self._store = store
        except RuntimeError:
            return
        count = 0
        while not self._stop.wait(self._period if count else 0):
            count += 1
            try:
                self._exchange(store, count)
                self._deaf = False
            except (RuntimeError, ValueError, TypeError):
                self._deaf = True
        with contextlib.suppress(RuntimeError):  # the others may take longer: this is no silence
            store.set(f"beat/{self._world.rank}", replace(self._own(count + 1), phase=LEFT).dump())

    def _exchange(self, store: torch_dist.Store, count: int) -> None:
        own = self._own(count)
        store.set(f"beat/{own.rank}", own.dump())
        if self._verdict is not None and not self._published.is_set():
            store.set(HANG_KEY, self._verdict)
            self._speaks = store.add("hang/told", 1) == 1
            self._await_others(store)
            self._published.set()
        elif self._verdict is None and store.check([HANG_KEY]):
            self._obey(store)
        for rank in range(self._world.world_size) if own.rank == 0 else (0,):
            self._hear(store, rank)

    def _hear(self, store: torch_dist.Store, rank: int) -> None:
        key, (before, _) = f"beat/{rank}", self._heard[rank]
        if before.pid or store.check([key]):
            beat = Beat.load(store.get(key))
            if beat.count != before.count:
                self._heard[rank] = beat, time.monotonic()

    def _await_others(self, store: torch_dist.Store) -> None:
        """Until every rank that still talks has written its stacks."""
        talking = sum(s.silent < 3 * self._period + 1 for s in self._table()) - 1
        deadline = time.monotonic() + 2 * self._period + 1
        while store.add("hung", 0) < talking and time.monotonic() < deadline:
            time.sleep(0.05)

    def _own(self, count: int) -> Beat:
        step, mark, phase, since, allowed = self._mark
        idle = time.monotonic() - since
        line, waits = self._main_thread() if idle > self._period else ("", False)
        busy = statistics.median(self._busy) if len(self._busy) >= _ENOUGH else None
        return Beat(
            self._world.rank,
            pid=os.getpid(),
            count=count,
            step=step,
            mark=mark,
            phase=phase,
            idle=idle,
            allowed=allowed,
            line=line,
            waits=waits,
            busy=busy,
        )

    def _main_thread(self) -> tuple[str, bool]:
        """The innermost line of the main thread, and whether it is in a collective."""
        frame: FrameType | None = sys._current_frames().get(self._main)
        if frame is None:
            return "", False
        code = frame.f_code
        line = f"{code.co_name} ({Path(code.co_filename).name}:{frame.f_lineno})"
        waits = False
        while frame is not None and not waits:
            waits = any(part in frame.f_code.co_filename for part in _WAITING_IN)
            frame = frame.f_back
        return line, waits

    # the thread that judges

    def _watch(self) -> None:
        last = time.monotonic()
        while not self._stop.wait(self._period):
            now = time.monotonic()
            if now - last > 3 * self._period + 1:  # the machine, or this process, was stopped
                self._forgive(now - last)
            last = now
            self._backstop()
            guilty = self._judge()
            if guilty:
                self._condemn(guilty)
            elif self._world.rank == 0:
                self._look_for_stragglers(now)

    def _backstop(self) -> None:
        """The interpreter's own clock ends a process whose main thread stops all the others too."""
        with self._arming:
            if not self._stop.is_set():
                end_if_stuck(group_timeout(self.timeout_s))

    def _forgive(self, seconds: float) -> None:
        """Time in which nobody could move counts for nobody."""
        step, mark, phase, since, allowed = self._mark
        self._mark = (step, mark, phase, since + seconds, allowed)
        self._heard = {r: (beat, at + seconds) for r, (beat, at) in self._heard.items()}

    def _table(self) -> list[Seen]:
        """All ranks as rank 0 sees them; this one as it is."""
        now, own = time.monotonic(), self._own(0)
        return [
            Seen(own, 0.0, False) if rank == own.rank else self._seen(beat, now - at)
            for rank, (beat, at) in sorted(self._heard.items())
            if beat.phase != LEFT
        ]

    def _seen(self, beat: Beat, silent: float) -> Seen:
        return Seen(beat, silent, silent > self.timeout_s / 2)

    def _judge(self) -> list[Seen]:
        """Rank 0 judges all; the others rank 0, by what they hear, and themselves where it is gone."""
        if self._world.rank == 0 and self._world.store is not None:
            return hung(self._table(), self.timeout_s)
        own = [Seen(self._own(0), 0.0, False)]
        if self._world.store is None:
            return hung(own, self.timeout_s)
        beat, at = self._heard[0]
        seen = self._seen(beat, time.monotonic() - at)
        lost = seen.silent > (self.timeout_s if beat.pid else beat.allowed)
        stuck = self._deaf and hung(own, self.timeout_s)  # nobody else is left to say so
        if beat.phase == LEFT:
            return own if stuck else []
        return [seen] if lost or stuck else []

    def _look_for_stragglers(self, now: float) -> None:
        table = self._table()
        found = slow(table)
        median = median_busy([s.beat for s in table])
        self.stragglers = [
            f"{b.place}: {b.busy or 0:.3f} s of its own a step, median {median:.3f} s"
            for b in found
        ]
        ranks = [b.rank for b in found]
        if found and ranks != self._reported and now - self._last_report > _REPORT_EVERY_S:
            self._last_report, self._reported = now, ranks
            text = "slow: " + "; ".join(self.stragglers[:8])
            values = {"step": self._mark[0], "ranks": ranks, "median_s": median}
            aside(lambda: self._tell("straggler", text, values))

    # the end

    def _condemn(self, guilty: list[Seen]) -> None:
        """Stacks, the verdict for the others, the verdict for people, exit."""
        if not self._ending.acquire(blocking=False):
            return
        step, ranks = self._mark[0], [_facts(s) for s in guilty]
        text = verdict(guilty, self._world.world_size, step, str(self._folder / FOLDER))
        # before the others leave, which would break the collective that this rank is in
        aside(lambda: self._write_stacks(text), wait_s=_LAST_WORDS_S)
        self._verdict = text
        if self._world.store is not None:
            self._published.wait(3 * self._period + 2)
        if self._speaks:
            values = {"step": step, "ranks": ranks}
            aside(lambda: self._tell("hang", text, values), wait_s=_LAST_WORDS_S)
        aside(lambda: self._release(text), wait_s=1.0)
        os._exit(HANG_STATUS)

    def _obey(self, store: torch_dist.Store) -> None:
        """Another rank has judged: stacks, then leave with it."""
        if not self._ending.acquire(blocking=False):
            return
        text = store.get(HANG_KEY).decode()
        aside(lambda: self._write_stacks(text), wait_s=_LAST_WORDS_S)
        store.add("hung", 1)
        deadline = time.monotonic() + _LAST_WORDS_S
        with contextlib.suppress(RuntimeError):  # the store's host has left
            while not store.check(["abort"]) and time.monotonic() < deadline:
                time.sleep(0.05)
        os._exit(HANG_STATUS)

    def _release(self, text: str) -> None:
        """Let the others go; also one that wakes up later or has no watchdog any more."""
        if self._store is not None:
            self._store.set("why", text)
            self._store.set("abort", str(HANG_STATUS))

    def _write_stacks(self, text: str) -> None:
        folder = self._folder / FOLDER
        folder.mkdir(exist_ok=True)
        with open(folder / f"rank_{self._world.rank:05d}.txt", "w", encoding="utf-8") as file:
            step, _, phase, since, _ = self._mark
            file.write(
                f"{text}\nrank {self._world.rank}, pid {os.getpid()}, "
                f"step {step}, phase {phase}, {time.monotonic() - since:.0f} s in it\n\n"
            )
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
            os.fsync(file.fileno())


def _facts(seen: Seen) -> dict[str, Any]:
    """Of a guilty rank, for events.jsonl."""
    beat = seen.beat
    facts = {k: getattr(beat, k) for k in ("rank", "pid", "host", "step", "phase", "line")}
    return {
        **facts,
        "silent": seen.mute,
        "seconds": round(seen.silent if seen.mute else seen.idle, 1),
    }
