"""wandb from a thread of its own: the run does not care what it throws or how long it hangs."""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from clipkit.config.redact import redact

_WAITING = 10_000
_FINISH_S = 60.0


class WandbSink:
    """Takes rows and hands them to wandb in order; rows it has no room for are dropped.

    Args:
        folder: The run folder; offline files lie in its wandb/.
        mode: "offline" or "online".
        project, name: For wandb.
        config: The complete config; masked here.
        complain: Called with one line when wandb begins to fail.

    Attributes:
        lost: Rows that wandb did not take.
    """

    def __init__(
        self,
        folder: Path,
        mode: Literal["offline", "online"],
        *,
        project: str,
        name: str,
        config: dict[str, Any],
        complain: Callable[[str], None],
    ) -> None:
        self._rows: queue.Queue[tuple[int, dict[str, Any]] | None] = queue.Queue(_WAITING)
        self._complain, self._failing, self.lost = complain, False, 0
        self._run = self._start(
            project=project, name=name, dir=str(folder), mode=mode, config=redact(config)
        )
        self._thread = threading.Thread(target=self._serve, name="clipkit-wandb", daemon=True)
        if self._run is not None:
            self._thread.start()

    def _start(self, **of_run: Any) -> Any:
        arguments, sys.argv = sys.argv, redact(sys.argv)  # wandb stores the command line
        try:
            import wandb

            os.environ.setdefault("WANDB_SILENT", "true")
            settings = wandb.Settings(
                init_timeout=30,
                login_timeout=30,  # on a terminal it asks for a key, and would wait for ever
                console="off",
                disable_git=True,
                save_code=False,
            )
            return wandb.init(**of_run, settings=settings)
        except Exception as error:  # a logger must never end a run
            self._complain(f"wandb is off: {type(error).__name__}: {str(error)[:200]}")
            return None
        finally:
            sys.argv = arguments

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Hand over one row; never waits."""
        if self._run is None:
            return
        try:
            self._rows.put_nowait((step, values))
        except queue.Full:
            self._failed(f"wandb hangs: {_WAITING} rows are waiting")

    def close(self) -> None:
        """Hand over what waits and finish, for at most a minute."""
        if self._run is None:
            return
        try:
            self._rows.put_nowait(None)
        except queue.Full:
            return
        self._thread.join(_FINISH_S)
        if self._thread.is_alive():
            self._complain(f"wandb did not finish within {_FINISH_S:.0f} s")
        self._run = None

    def _serve(self) -> None:
        while (row := self._rows.get()) is not None:
            try:
                self._run.log(row[1], step=row[0])
                self._failing = False
            except Exception as error:  # a logger must never end a run
                self._failed(f"wandb fails: {type(error).__name__}: {str(error)[:200]}")
        try:
            self._run.finish()
        except Exception as error:
            self._failed(f"wandb did not finish: {type(error).__name__}: {str(error)[:200]}")

    def _failed(self, text: str) -> None:
        """Count a row, and complain when it is the first of several."""
        self.lost += 1
        if not self._failing:
            self._failing = True
            self._complain(text)
