"""Where numbers and events go: a progress line, metrics.jsonl, events.jsonl, wandb.

Rank 0 only; secrets are masked; no disk, terminal or network that fails ever stops a run.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from clipkit.config.redact import redact
from clipkit.engine.json_lines import JsonLines, keep_until
from clipkit.engine.wandb_sink import WandbSink
from clipkit.eval.plain_text import printable

METRICS, EVENTS = "metrics.jsonl", "events.jsonl"
_LINE_EVERY_S = 30.0
_ALARMS_SHOWN = 5


class _Screen(Console):
    """One whose reader may leave (`| tee` that was killed): rich would end the process then."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class RunLog:
    """Progress, metrics and events of one run.

    Args:
        folder: The run folder.
        main: Whether this rank writes.
        total_steps: For the progress bar; may be set later.
        progress: Show the bar (only on a terminal, else a line now and then).
        wandb_mode: "off", "offline" or "online".
        project, name: For wandb.
        config: The complete config, for wandb; masked there.

    Attributes:
        num_alarms: Alarms since the start of the process.
        last_alarms: The last few, as events.jsonl has them.
    """

    def __init__(
        self,
        folder: Path,
        *,
        main: bool,
        total_steps: int = 0,
        progress: bool = True,
        wandb_mode: Literal["off", "offline", "online"] = "off",
        project: str = "clipkit",
        name: str = "run",
        config: dict[str, Any] | None = None,
    ) -> None:
        self.console = _Screen(stderr=True, quiet=not main, soft_wrap=True)
        self.path = folder / METRICS
        self._main, self.total_steps, self._show = main, total_steps, progress and main
        self._metrics: JsonLines | None = None
        self._events = JsonLines(folder / EVENTS)
        self.num_alarms = 0
        self.last_alarms: deque[dict[str, Any]] = deque(maxlen=_ALARMS_SHOWN)
        self._counting = threading.Lock()
        self._step = 0
        self._last_line = time.monotonic()
        self._progress: Progress | None = None
        self._wandb: WandbSink | None = None
        if main and wandb_mode != "off":
            self._wandb = WandbSink(
                folder,
                wandb_mode,
                project=project,
                name=name,
                config=config or {},
                complain=lambda text: self.event("wandb_failed", self._step, text, alarm=True),
            )

    def begin(self, step: int) -> None:
        """Open metrics.jsonl after `step` trained steps; later lines, to be written again, go."""
        self._step = step
        if not self._main:
            return
        try:
            keep_until(self.path, step)
        except OSError as error:
            text = f"{METRICS}: later lines stay: {error.strerror or error}"
            self.event("log_failed", step, text, alarm=True)
        self._metrics = JsonLines(self.path)

    def take_over(self) -> None:
        """Write events from this rank from now on: the one that did is silent."""
        self._main, self.console.quiet = True, False

    @contextmanager
    def live(self, start: int) -> Iterator[None]:
        """Show the progress bar, from `start`."""
        if not self._show or not self.console.is_terminal:
            yield
            return
        columns = (
            TextColumn("step"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
        )
        progress = Progress(*columns, console=self.console)
        with contextlib.suppress(OSError, ValueError):
            progress.start()
        self._progress = progress
        progress.add_task("", total=self.total_steps, completed=start)
        try:
            yield
        finally:
            self._progress = None
            with contextlib.suppress(OSError, ValueError):
                progress.stop()

    def metrics(self, step: int, values: dict[str, Any]) -> None:
        """Write one line of metrics after `step` trained steps; keys carry their prefix."""
        self._step = step
        if self._metrics is None:
            return
        if problem := self._metrics.write({"step": step, **values}):
            text = f"{problem}; training goes on without a log until it can be written again"
            self.event("log_failed", step, text, alarm=True)
        if self._wandb is not None:
            self._wandb.log(step, redact(values))

    def event(
        self, kind: str, step: int, text: str = "", *, alarm: bool = False, **values: Any
    ) -> None:
        """Note what happened in events.jsonl and, if there is a text, tell people.

        Never raises and never waits for long; any thread may call it.

        Args:
            kind: What, in one word, e.g. "saved".
            step: Trained steps.
            text: One line for people.
            alarm: Something that a person should look at: counted, kept, in yellow.
            values: More about it, JSON-able.
        """
        if not self._main:
            return
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        line = redact({"time": now, "step": step, "kind": kind, "text": text})
        with self._counting:
            if alarm:
                self.num_alarms += 1
                self.last_alarms.append(line)
        if text:
            (self.warn if alarm else self.say)(f"step {step}: {text}")
        try:
            problem = self._events.write({**line, **({"alarm": True} if alarm else {}), **values})
        except Exception as error:  # what an extension gave is not JSON
            problem = f"{EVENTS}: {type(error).__name__}: {str(error)[:200]}"
        if problem:
            with self._counting:
                self.num_alarms += 1
                self.last_alarms.append({**line, "kind": "log_failed", "text": problem})
            self.warn(f"{problem}; training goes on")

    def tick(self, step: int, text: str) -> None:
        """Advance the bar; without a terminal, a line every 30 s and about 20 times a run."""
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], completed=step, description=text)
        elif self._show:
            due = step == self.total_steps or step % max(1, self.total_steps // 20) == 0
            if due or time.monotonic() - self._last_line > _LINE_EVERY_S:
                self._last_line = time.monotonic()
                self.say(f"step {step}/{self.total_steps}  {text}")

    def say(self, text: str) -> None:
        """One line for people, secrets masked."""
        self.show(Text(printable(redact(text))))

    def warn(self, text: str) -> None:
        """One line that should not be missed."""
        self.show(Text(printable(redact(text)), style="yellow"))

    def show(self, what: RenderableType) -> None:
        """Print; a terminal that went away, or a full disk behind it, does no harm."""
        with contextlib.suppress(OSError, ValueError):
            self.console.print(what)

    def close(self) -> None:
        """Flush and leave."""
        for file in (self._metrics, self._events):
            if file is not None:
                file.close()
        self._metrics = None
        if self._wandb is not None:
            self._wandb.close()
            self._wandb = None
