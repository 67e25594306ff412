"""How a run stands, from its files alone: status.json, the lock, checkpoints, metrics.jsonl.

No torch here.
"""

from __future__ import annotations

import socket
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, get_args

from clipkit.checkpoint.verify import MANIFEST, list_checkpoints, step_of
from clipkit.engine.json_lines import last_lines
from clipkit.engine.log import METRICS
from clipkit.engine.run_folder import is_live
from clipkit.engine.status import STATUS, State, read_status
from clipkit.errors import ConfigError
from clipkit.eval.plain_text import printable

_FAR_S = 600.0  # a lock on another machine may be out of sight; its status file is not
_NEWS_S = 3600.0
NEEDS_A_PERSON = ("failed", "dead", "stalled", "unknown")
_LINE = ("loss", "data_wait", "step_s", "peak_memory_gb")
_NUMBERS = {"step", "total_steps", "samples_per_s", "eta_s", "skipped", "bad_samples", *_LINE}
_MOST = 1e15  # a larger number is none that was counted or measured


def standing(folder: Path) -> dict[str, Any]:
    """The status file's values, and what they cannot know.

    Returns:
        state: running, preempted, failed or done as the run says; or
            dead: it says running, but no process holds its lock;
            stalled: it runs, and nothing was written for an hour;
            unknown: there is no status file that says one of these.
        age_s: Seconds since the last news; None where unknown.
        checkpoint: {"name", "step", "age_s"} of the newest complete one (by its manifest), or None.
        loss, data_wait, step_s, peak_memory_gb: Of the last line of metrics.jsonl that has them.
        And everything in status.json that is of the kind it should be; texts are one line each.

    Raises:
        ConfigError: No such folder.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such run folder")
    values = read_status(folder)
    age = _age(folder / STATUS) if values else None
    found = {**values, "run": str(folder), "age_s": age, "checkpoint": _newest(folder)}
    for line in last_lines(folder / METRICS, 50):
        for key in _LINE:
            if f"train/{key}" in line:
                found[key] = line[f"train/{key}"]
    found["state"] = _state(folder, values, age)
    return _sound(found)


def _sound(values: dict[str, Any]) -> dict[str, Any]:
    """Without what would mislead a reader or command a terminal: anyone may have written it."""
    found = {k: v for k, v in values.items() if k not in _NUMBERS or v is None or _is_number(v)}
    slow = found.get("stragglers")
    found["stragglers"] = list(map(str, slow)) if isinstance(slow, list) else []
    alarms = found.get("alarms")
    alarms = alarms if isinstance(alarms, dict) else {}
    count, last = alarms.get("count"), alarms.get("last")
    found["alarms"] = {
        "count": count if _is_number(count) else 0,
        "last": [a for a in last if isinstance(a, dict)] if isinstance(last, list) else [],
    }
    return {k: _plain(v) for k, v in found.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return printable(value) if isinstance(value, str) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _MOST


def _state(folder: Path, values: dict[str, Any], age: float | None) -> str:
    state = values.get("state")
    if state not in get_args(State):
        return "unknown"
    if state != "running" or age is None:
        return str(state)
    here = values.get("host") == socket.gethostname()
    if not is_live(folder) and (here or age > _FAR_S):
        return "dead"
    return "stalled" if age > _NEWS_S else "running"


def _newest(folder: Path) -> dict[str, Any] | None:
    for checkpoint in reversed(list_checkpoints(folder)):
        if (checkpoint / MANIFEST).is_file():
            age = _age(checkpoint / MANIFEST)
            return {"name": checkpoint.name, "step": step_of(checkpoint), "age_s": age}
    return None


def _age(path: Path) -> float:
    """Seconds since a file was written; never below 0, whatever the clocks say."""
    try:
        return max(0.0, datetime.now(timezone.utc).timestamp() - path.stat().st_mtime)
    except OSError:
        return 0.0
