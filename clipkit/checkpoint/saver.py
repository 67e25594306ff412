"""Saves of a running job: the step waits for a copy in host memory, a thread writes it to disk."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from clipkit.checkpoint.host_copy import HostCopy, Slice
from clipkit.checkpoint.remote import Mirror
from clipkit.checkpoint.retention import SCORES, Retention, metric_of, read_scores
from clipkit.checkpoint.verify import checkpoint_folder
from clipkit.checkpoint.writer import Job, Tell, Writer
from clipkit.dist.group import World
from clipkit.errors import CheckpointError

RETRY_AFTER_S = (5.0, 30.0)


def _tell_nobody(kind: str, text: str, values: dict[str, Any]) -> None:
    """For a saver that nobody listens to."""


class Saver:
    """Writes the checkpoints of a run; made and called by all ranks alike.

    A write that fails on any rank is told, removed and counted; the earlier checkpoints stay as
    they are, training goes on, and the next save is a new try.

    Args:
        run_dir: The run folder, shared by all ranks.
        world: The ranks.
        keep, keep_every, best, best_mode: See `Retention`.
        remote: Folder (fsspec URL) that finished checkpoints are copied to, below the run's name.
        background: Write in a thread; else `save` returns when the write is through.
        tell: tell(kind, text, values), on rank 0, from other threads too. Kinds: "saved", "pruned",
            "uploaded"; alarms: "save_failed", "prune_failed", "upload_failed", "best_failed".

    Attributes:
        failures: Writes that failed.
        seconds: Of the last save: "blocked" (this rank's loop stood still), "total" (until it was
            on disk, on rank 0).
    """

    def __init__(
        self,
        run_dir: str | Path,
        world: World,
        *,
        keep: int = 2,
        keep_every: int = 0,
        best: str | None = None,
        best_mode: str = "max",
        remote: str | None = None,
        background: bool = True,
        tell: Tell = _tell_nobody,
    ) -> None:
        self._run, self._main, self._tell = Path(run_dir), world.is_main, tell
        self._background, self._best = background, best
        self._scores = read_scores(run_dir, best) if world.is_main else {}
        retention = Retention(keep, keep_every, best, best_mode)
        self._writer = Writer(self._run, world, retention, self._scores, tell)
        self._copy = HostCopy()
        self._mirror: Mirror | None = None
        if remote is not None and world.is_main:
            self._mirror = Mirror(self._run, remote, retention, self._scores, tell)
        self._number = 0
        self._under_way: Job | None = None
        self._failed: tuple[Job, str] | None = None
        self._thread: threading.Thread | None = None
        self._crash: BaseException | None = None
        self.failures = 0
        self.seconds = {"blocked": 0.0, "total": 0.0}

    @property
    def last(self) -> Path | None:
        """The newest checkpoint it finished; ranks other than 0 hear of it at the next call."""
        return self._writer.finished

    def save(
        self,
        step: int,
        *,
        slices: Iterable[Slice],
        state: dict[str, Any],
        model_config: dict[str, Any],
    ) -> None:
        """Begin a checkpoint of `step`; what was handed in may change afterwards.

        Waits until the write before is through. A disk that fails does not raise: see `wait`.

        Args:
            step: Trained steps.
            slices: What this rank owns; together the ranks own everything once.
            state: JSON-able, from rank 0. With `best`: "results" are of "results_step".
            model_config: The towers' open_clip_config.json.
        """
        begin = time.perf_counter()
        self._settle()
        texts = {}
        if self._main:
            state = {**state, **self._note_score(state)}
            texts["state.json"] = json.dumps(state)
            texts["open_clip_config.json"] = json.dumps(model_config)
        self._copy.take(slices)
        self._start(Job(step, self._number, texts, begin))
        self.seconds["blocked"] = time.perf_counter() - begin

    def wait(self, retry_after_s: Iterable[float] | None = None) -> None:
        """Return when the last save is on disk; one that failed is tried again after pauses.

        Args:
            retry_after_s: The pauses, one a try; None: `RETRY_AFTER_S`.

        Raises:
            CheckpointError: On all ranks: it could not be written.
        """
        self._settle()
        for pause in RETRY_AFTER_S if retry_after_s is None else retry_after_s:
            if self._failed is None:
                return
            time.sleep(pause)
            job = self._failed[0]
            self._start(Job(job.step, self._number, job.texts, job.begin, job.attempt + 1))
            self._settle()
        if self._failed is not None:
            job, problem = self._failed
            raise CheckpointError(
                f"{checkpoint_folder(self._run, job.step)} was not written ({problem}); free space "
                f"or mend the disk; earlier checkpoints are untouched"
            )

    def close(self) -> None:
        """Finish what is under way, copies to the remote folder too; raises nothing of a disk's."""
        self._settle()
        if self._mirror is not None:
            self._mirror.close()

    def _note_score(self, state: dict[str, Any]) -> dict[str, Any]:
        """What the state remembers of the metric that decides which checkpoint is best."""
        if self._best is None:
            return {}
        results, of_step = state.get("results") or {}, state.get("results_step")
        value = metric_of(results, self._best)
        if value is not None and of_step is not None:
            self._scores[int(of_step)] = value
        elif results and value is None:
            known = ", ".join(f"{name}/{m}" for name, metrics in results.items() for m in metrics)
            text = f"checkpoint.best: no result is called {self._best}; there are {known}"
            self._tell("best_failed", text, {})
        return {SCORES: {self._best: {str(s): v for s, v in self._scores.items()}}}

    def _start(self, job: Job) -> None:
        self._under_way, self._failed = job, None
        self._number += 1
        if self._background:
            self._thread = threading.Thread(
                target=self._work, args=(job,), name="clipkit-saver", daemon=True
            )
            self._thread.start()
        else:
            self._work(job)
            self._settle()

    def _work(self, job: Job) -> None:
        try:
            self._writer.write(job, self._copy)
        except BaseException as error:  # the thread's; raised where the loop is
            self._crash = error
            return
        if self._mirror is not None:
            self._mirror.wake()

    def _settle(self) -> None:
        """Wait for the write under way; afterwards all ranks know alike how it went."""
        job = self._under_way
        if job is None:
            return
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._crash is not None:
            raise self._crash
        problem = self._writer.meeting.outcome(job.number)
        self._under_way = None
        self.seconds["total"] = self._writer.total_s
        if problem:
            self.failures += 1
            self._failed = job, problem
        else:
            self._writer.finished = checkpoint_folder(self._run, job.step)
