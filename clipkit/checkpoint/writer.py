"""One try at one checkpoint: what a rank's writing thread does, from its part to the pruning."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipkit.checkpoint import files
from clipkit.checkpoint.host_copy import HostCopy
from clipkit.checkpoint.meeting import Meeting
from clipkit.checkpoint.retention import Retention, prune
from clipkit.checkpoint.verify import checkpoint_folder
from clipkit.checkpoint.write import finish, sweep, write_part
from clipkit.dist.group import World

Tell = Callable[[str, str, dict[str, Any]], None]


@dataclass(frozen=True)
class Job:
    """A checkpoint to write.

    Attributes:
        step: Trained steps.
        number: Of the write, counted alike on all ranks.
        texts: Further files by name.
        begin: time.perf_counter() of the save.
        attempt: Earlier tries to write the same.
    """

    step: int
    number: int
    texts: dict[str, str]
    begin: float
    attempt: int = 0


class Writer:
    """Writes this rank's part; on rank 0 also completes, tells and prunes.

    Attributes:
        finished: The newest checkpoint it completed.
        total_s: Seconds from the last save's begin until it was on disk.
    """

    def __init__(
        self,
        run_dir: Path,
        world: World,
        retention: Retention,
        scores: dict[int, float],
        tell: Tell,
    ) -> None:
        self._run, self._rank, self._tell = run_dir, world.rank, tell
        self._retention, self._scores = retention, scores
        self.meeting = Meeting(world)
        self.finished: Path | None = None
        self.total_s = 0.0

    def write(self, job: Job, copy: HostCopy) -> None:
        """One try; how it went is announced to all ranks."""
        final = checkpoint_folder(self._run, job.step)
        folder = final.with_name(f".{final.name}.tmp-{self.meeting.id}-{job.number}")
        with contextlib.ExitStack() as held:
            try:
                if self._rank == 0:
                    sure = held.enter_context(files.only_writer(final.parent))
                    sweep(final.parent, folder.name, None if sure else self.meeting.id)
                part = write_part(folder, self._rank, copy, job.step, job.attempt)
            except OSError as error:
                part = {"error": f"rank {self._rank}: {_reason(error)}"}
            self.meeting.hand_in(job.number, part)
            if self._rank == 0:
                problem = self._complete(job, folder, final)
                self.total_s = time.perf_counter() - job.begin
                self._report(job, final, problem)
                self.meeting.announce(job.number, problem)
                if not problem:
                    self._prune(job.step)

    def _complete(self, job: Job, folder: Path, final: Path) -> str:
        """Collect the parts and give the folder its name; returns what went wrong, or ""."""
        try:
            parts = self.meeting.collect(job.number)
            problem = next((p["error"] for p in parts if "error" in p), "")
            if not problem:
                finish(folder, final, parts, job.texts, job.step)
                return ""
        except OSError as error:
            problem = f"rank 0: {_reason(error)}"
        with contextlib.suppress(OSError):
            files.remove_tree(folder)
        return problem

    def _report(self, job: Job, final: Path, problem: str) -> None:
        values = {"checkpoint": str(final), "step": job.step, "seconds": self.total_s}
        if problem:
            text = f"{final} was not written ({problem}); earlier checkpoints are untouched"
            self._tell("save_failed", text, values)
        else:
            self.finished = final
            self._tell("saved", f"saved {final}", values)

    def _prune(self, step: int) -> None:
        try:
            for gone in prune(self._run, self._retention, self._scores, step):
                self._tell("pruned", f"removed {gone}", {"step": step, "checkpoint": str(gone)})
        except OSError as error:
            self._tell("prune_failed", f"an old checkpoint stays: {_reason(error)}", {"step": step})


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
