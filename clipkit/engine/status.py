"""RUN/status.json: what a run does now, or how it ended, for people and for what starts it again.

    state            running | preempted | failed | done
    exit_status      of the process that ended (see clipkit/errors.py); null while running
    error            one line, of a run that failed
    step total_steps samples_per_s eta_s last_checkpoint skipped bad_samples stragglers
    alarms           {"count": since the start of the process, "last": the last few}
    time started     UTC
    host pid job_id  of rank 0

Replaced in one move: a reader sees the old or the new one. No torch here.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from clipkit.config.redact import redact
from clipkit.engine.log import RunLog
from clipkit.engine.run_folder import may_write

STATUS = "status.json"
State = Literal["running", "preempted", "failed", "done"]
_LOCK_S = 2.0


class StatusFile:
    """Written by rank 0 every few seconds and at the end. Never raises.

    Args:
        folder: The run folder.
        main: Whether this rank writes.
        log: Whose alarms are shown.
        every_s: Seconds between two writes of `update`.
    """

    def __init__(
        self, folder: Path, *, main: bool, log: RunLog | None = None, every_s: float = 5.0
    ) -> None:
        self.path = folder / STATUS
        self._main, self._log, self._every_s = main, log, every_s
        self._values: dict[str, Any] = {}
        self._last: float | None = None
        self._start: tuple[float, int] | None = None
        self._ended = self._deputy = False
        self._lock = threading.Lock()

    def take_over(self) -> None:
        """Write from this rank from now on: the one that did is silent."""
        self._deputy = not self._main
        self._main = True

    def update(self, **values: Any) -> None:
        """New values; written when the last ones are a few seconds old."""
        if not self._main or self._ended:
            return
        now = time.monotonic()
        if not self._values:
            self._values = {**_identity(), "started": _utc()}
        self._values.update(values)
        if self._last is None or now - self._last >= self._every_s:
            self._last = now
            self._values.update(state="running", exit_status=None, error=None)
            self._values.setdefault("eta_s", None)
            if "eta_s" not in values:
                self._values["eta_s"] = self._eta(now)
            self._write(flush=False)

    def finish(self, state: State, **values: Any) -> None:
        """How it ended; always written, and final. Values of an earlier life stay where none came.

        Another process's run is left alone: a start that failed before it claimed the folder.
        """
        if not self._main or self._ended or not self.path.parent.is_dir():
            return
        if not self._values:
            if not (self._deputy or may_write(self.path.parent)):
                return
            self._values = read_status(self.path.parent)
        self._ended = True
        if not self._deputy:
            self._values.update(_identity())
        exit_status = int(state == "failed")
        done = {"state": state, "eta_s": None, "exit_status": exit_status, "error": None}
        self._values.update({**done, **values})
        self._write(flush=True)

    def _eta(self, now: float) -> float | None:
        """Seconds to go at the pace since the first step of this process."""
        step, total = self._values.get("step"), self._values.get("total_steps")
        if not isinstance(step, int) or not isinstance(total, int):
            return None
        if self._start is None:
            self._start = now, step
        since, first = self._start
        return round((total - step) * (now - since) / (step - first), 1) if step > first else None

    def _write(self, *, flush: bool) -> None:
        """`flush`: wait for the disk; not while training, where a slow one would stop the step."""
        if not self._lock.acquire(timeout=_LOCK_S):  # another thread hangs in the disk
            return
        try:
            if self._log is not None:
                alarms = {"count": self._log.num_alarms, "last": list(self._log.last_alarms)}
                self._values["alarms"] = alarms
            self._values["time"] = _utc()
            text = json.dumps(redact(dict(self._values)), indent=1, default=str)
            temporary = self.path.with_name(f".{STATUS}.tmp-{os.getpid()}")
            try:
                with open(temporary, "w", encoding="utf-8") as file:
                    file.write(text + "\n")
                    if flush:
                        file.flush()
                        os.fsync(file.fileno())
                os.replace(temporary, self.path)
            except OSError:  # a full disk; the next one may be written
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)
        except (TypeError, ValueError, RecursionError):  # what a caller gave is not JSON
            pass
        finally:
            self._lock.release()


def read_status(folder: Path) -> dict[str, Any]:
    """What status.json holds; {} without one that can be read."""
    try:
        values = json.loads((folder / STATUS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _identity() -> dict[str, Any]:
    job = os.environ.get("SLURM_JOB_ID") or os.environ.get("TORCHELASTIC_RUN_ID")
    return {"host": socket.gethostname(), "pid": os.getpid(), "job_id": job}


def _utc() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
