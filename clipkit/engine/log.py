"""Where numbers go: a progress line, metrics.jsonl, wandb.

Rank 0 only; secrets are masked; wandb never stops a run.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from clipkit.config.redact import redact

_LINE_EVERY_S = 30.0


class RunLog:
    """Progress and metrics of one run.

    Args:
        folder: The run folder.
        main: Whether this rank writes.
        total_steps: For the progress bar; may be set later.
        progress: Show the bar (only on a terminal, else a line now and then).
        wandb_mode: "off", "offline" or "online".
        project, name: For wandb.
        config: The complete config, for wandb; masked here.
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
        self.console = Console(stderr=True, quiet=not main, soft_wrap=True)
        self.path = folder / "metrics.jsonl"
        self._main, self.total_steps, self._show = main, total_steps, progress and main
        self._file: TextIO | None = None
        self._wandb: Any = None
        self._last_line = time.monotonic()
        self._progress: Progress | None = None
        if main and wandb_mode != "off":
            self._wandb = self._start_wandb(folder, wandb_mode, project, name, config or {})

    def _start_wandb(
        self,
        folder: Path,
        mode: Literal["offline", "online"],
        project: str,
        name: str,
        config: dict[str, Any],
    ) -> Any:
        arguments, sys.argv = sys.argv, redact(sys.argv)  # wandb stores the command line
        try:
            import wandb

            os.environ.setdefault("WANDB_SILENT", "true")
            settings = wandb.Settings(
                init_timeout=30, console="off", disable_git=True, save_code=False
            )
            return wandb.init(
                project=project,
                name=name,
                dir=str(folder),
                mode=mode,
                config=redact(config),
                settings=settings,
            )
        except Exception as error:  # a logger must never end a run
            self.warn(f"wandb is off: {type(error).__name__}: {str(error)[:200]}")
            return None
        finally:
            sys.argv = arguments

    def begin(self, step: int) -> None:
        """Open metrics.jsonl after `step` trained steps; later lines, to be written again, go."""
        if self._main:
            keep_until(self.path, step)
            self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115  (closed by close)

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
        with Progress(*columns, console=self.console) as progress:
            self._progress = progress
            progress.add_task("", total=self.total_steps, completed=start)
            yield
            self._progress = None

    def metrics(self, step: int, values: dict[str, Any]) -> None:
        """Write one line of metrics after `step` trained steps; keys carry their prefix."""
        if not self._main or self._file is None:
            return
        clean = redact({"step": step, **{k: _plain(v) for k, v in values.items()}})
        self._file.write(json.dumps(clean) + "\n")
        self._file.flush()
        if self._wandb is not None:
            try:
                self._wandb.log({k: v for k, v in clean.items() if k != "step"}, step=step)
            except Exception as error:  # a logger must never end a run
                self.warn(f"wandb stopped: {type(error).__name__}: {str(error)[:200]}")
                self._wandb = None

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
        """One line for people, as it is."""
        self.console.print(Text(text))

    def warn(self, text: str) -> None:
        """One line that should not be missed."""
        self.console.print(Text(text, style="yellow"))

    def close(self) -> None:
        """Flush and leave."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._wandb is not None:
            try:
                self._wandb.finish()
            except Exception as error:  # a logger must never end a run
                self.warn(f"wandb did not finish: {type(error).__name__}")
            self._wandb = None


def _plain(value: Any) -> Any:
    """JSON has no NaN: a non-finite number becomes null."""
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):
        return None
    return value


def keep_until(path: Path, step: int) -> None:
    """Drop lines after `step`, and one cut short by a crash: a resumed file joins the old one."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    temporary = path.with_suffix(".jsonl.tmp")
    temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    os.replace(temporary, path)
