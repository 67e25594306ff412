"""Faults on purpose: CLIPKIT_FAULT="kind@rank:step[:argument],..." breaks a run at one place.

Unset, every hook returns at once. A rank of `*` is any rank. Kinds that act at the start of a step
are done here (`strike`); the others are asked for by name (`asked`) where they belong:

    kill stop term usr1   the signal to this process      hang         the main thread sleeps on
    sleep:SECONDS         in this step and all later ones exit:STATUS  leaves without a word
    nan_loss nan_grad spike:FACTOR                        in the step
    save:POINT            killed at that point of a save  disk_full    saves fail as on a full disk

No torch here.
"""

from __future__ import annotations

import os
import re
import signal
import time
from dataclasses import dataclass
from functools import lru_cache

from clipkit.errors import ConfigError

VARIABLE = "CLIPKIT_FAULT"
_SIGNALS = {
    "kill": signal.SIGKILL,
    "stop": signal.SIGSTOP,
    "term": signal.SIGTERM,
    "usr1": signal.SIGUSR1,
}
KINDS = (*_SIGNALS, "hang", "sleep", "exit", "nan_loss", "nan_grad", "spike", "save", "disk_full")
POINTS = ("tensor", "manifest", "rename", "latest", "prune")  # of save:POINT, in their order
_ARGUMENTS = {  # of the kinds that take one; only that of `save` must be there
    "sleep": r"\d*\.?\d+|",
    "exit": r"\d{1,3}|",
    "spike": r"\d*\.?\d+|",
    "disk_full": r"\d{1,4}|",
    "save": "|".join(POINTS),
}
_FORM = re.compile(r"^(?P<kind>\w+)@(?P<rank>\d+|\*):(?P<step>\d+)(:(?P<argument>.+))?$")


@dataclass(frozen=True)
class Fault:
    """One fault: what, on which rank (None: any), in which step (from 0), with which argument."""

    kind: str
    rank: int | None
    step: int
    argument: str


@lru_cache(maxsize=8)
def parse(text: str) -> tuple[Fault, ...]:
    """Faults of a comma-separated list.

    Raises:
        ConfigError: One of them is malformed or of an unknown kind.
    """
    faults = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        match = _FORM.match(part)
        if match is None or match["kind"] not in KINDS:
            raise ConfigError(
                f"{VARIABLE}: '{part}' is no fault; write kind@rank:step[:argument], "
                f"kinds: {', '.join(KINDS)}"
            )
        rank, argument = match["rank"], match["argument"] or ""
        form = _ARGUMENTS.get(match["kind"], "")
        if not re.fullmatch(form, argument):
            wanted = f"one of {', '.join(POINTS)}" if match["kind"] == "save" else "a number"
            wanted = f"takes {wanted}" if form else "takes no argument"
            raise ConfigError(f"{VARIABLE}: '{part}': {match['kind']} {wanted}")
        faults.append(
            Fault(match["kind"], None if rank == "*" else int(rank), int(match["step"]), argument)
        )
    return tuple(faults)


def warning() -> list[str]:
    """One line where faults are asked for: nobody should train for weeks with them.

    Raises:
        ConfigError: See `parse`.
    """
    text = os.environ.get(VARIABLE, "")
    return [f"{VARIABLE}={text} is set: this run will be broken on purpose"] if parse(text) else []


def asked(kind: str, rank: int, step: int) -> str | None:
    """The argument of this fault on this rank in this step, "" without one; None: not asked for."""
    text = os.environ.get(VARIABLE)
    if not text:
        return None
    for fault in parse(text):
        if fault.kind == kind and fault.rank in (None, rank) and fault.step == step:
            return fault.argument
    return None


def loss_factor(rank: int, step: int) -> float | None:
    """What the loss of this rank is multiplied by in this step; None: nothing is asked for."""
    if asked("nan_loss", rank, step) is not None:
        return float("nan")
    factor = asked("spike", rank, step)
    return None if factor is None else float(factor or 10)


def strike(rank: int, step: int) -> None:
    """Do what is asked for at the start of a step."""
    text = os.environ.get(VARIABLE)
    if not text:
        return
    for fault in parse(text):
        if fault.rank not in (None, rank) or fault.step > step:
            continue
        if fault.kind == "sleep":
            time.sleep(float(fault.argument or 1))
        elif fault.step < step:
            continue
        elif fault.kind in _SIGNALS:
            os.kill(os.getpid(), _SIGNALS[fault.kind])
        elif fault.kind == "exit":
            os._exit(int(fault.argument or 1))
        elif fault.kind == "hang":
            while True:
                time.sleep(3600)
