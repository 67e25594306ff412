"""One shard's work, as a worker of any engine gets and answers it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipkit.errors import ClipkitError
from data_tools.done import write_done


@dataclass(frozen=True)
class Task:
    """A call of `module.function(shard, out, **params)`.

    Attributes:
        marker: File that says it is done.
        fingerprint: What the marker must hold to count: code, parameters and shard.
    """

    module: str
    function: str
    shard: str
    out: str
    params: dict[str, Any] = field(default_factory=dict)
    marker: str = ""
    fingerprint: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of a task: `result`, or else `error`, one line.

    Attributes:
        final: Another try would end the same way.
    """

    result: dict[str, Any] | None = None
    error: str = ""
    final: bool = False


def run_task(task: Task) -> Outcome:
    """Do the work and mark it done; never raises."""
    try:
        Path(task.marker).unlink(missing_ok=True)  # its outputs are about to be replaced
        function = getattr(importlib.import_module(task.module), task.function)
        result = function(task.shard, Path(task.out), **task.params)
        return Outcome(write_done(Path(task.marker), task.fingerprint, Path(task.out), result))
    except ClipkitError as error:
        return Outcome(error=_line(str(error)), final=True)
    except (Exception, SystemExit) as error:  # whatever one shard does, the others go on
        return Outcome(error=_line(f"{type(error).__name__}: {error}"))


def _line(text: str) -> str:
    return " ".join(text.split())[:500]
