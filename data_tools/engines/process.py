"""A pool of spawned processes on this machine; a worker that dies takes only its shard with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection

from data_tools.engines.task import Outcome, Task, run_task

_DIED = "its worker process died; out of memory? Try fewer --workers"
Results = Generator[tuple[int, Outcome], None, "list[int]"]


def run(tasks: Sequence[Task], workers: int | None) -> Generator[tuple[int, Outcome], None, None]:
    """(number, outcome) of each task as it is done; `workers` defaults to this process's CPUs.

    When a worker dies, the pool does not tell with which task: those it had begun run again, each
    alone.
    """
    workers = workers or len(os.sched_getaffinity(0))
    waiting = deque(range(len(tasks)))
    while waiting:
        suspects = yield from _until_broken(tasks, waiting, workers)
        for number in suspects:
            for guilty in (yield from _until_broken(tasks, deque([number]), 1)):
                yield guilty, Outcome(error=_DIED)


def _until_broken(tasks: Sequence[Task], waiting: deque[int], workers: int) -> Results:
    """Work off `waiting`; returns early, with the tasks that were running, when a worker dies."""
    flying: dict[Future[Outcome], int] = {}
    with _pool(min(workers, len(waiting))) as pool:
        while waiting or flying:
            # No more than one task a worker is begun, so that few are suspects.
            while waiting and len(flying) < workers:
                try:
                    with _ctrl_c_held():
                        flying[pool.submit(run_task, tasks[waiting[0]])] = waiting[0]
                except BrokenProcessPool:
                    if not flying:  # a worker died idle: nobody's fault
                        return []
                    break
                waiting.popleft()
            done, _ = wait(flying, return_when=FIRST_COMPLETED)
            broken = any(isinstance(future.exception(), BrokenProcessPool) for future in done)
            if broken:
                done, _ = wait(flying)
            suspects = []
            for future in done:
                number = flying.pop(future)
                if isinstance(future.exception(), BrokenProcessPool):
                    suspects.append(number)
                else:
                    yield number, future.result()
            if broken:
                return sorted(suspects)
    return []


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool whose workers live no longer than this block or this process, however it ends."""
    context = multiprocessing.get_context("spawn")
    watched, lifeline = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, _start_worker, (watched,))
    try:
        yield pool
        pool.shutdown()
    finally:
        lifeline.close()
        pool.shutdown(cancel_futures=True)
        watched.close()


@contextmanager
def _ctrl_c_held() -> Iterator[None]:
    """A process started in this block does not hear Ctrl-C; this one hears it afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(watched: Connection) -> None:
    """Leave Ctrl-C to the parent, and end when it closes the other end of `watched` or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers share out the CPUs, not threads

    def watch() -> None:
        try:
            watched.recv_bytes()
        except (EOFError, OSError):
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
