"""How far a rank is, as it tells the others, and what a table of ranks says about a hang.

A position is (step, marks since it began): all ranks pass the same marks in the same order, so the
ones with the smallest position are those that the others wait for. No torch here.
"""

from __future__ import annotations

import json
import socket
import statistics
from dataclasses import asdict, dataclass, field

_SLOW = 1.5
_SLOW_FLOOR_S = 0.01
_NAMED = 8


@dataclass
class Beat:
    """What one rank says of itself.

    Attributes:
        rank: Who.
        pid, host: Where.
        count: Of its beats.
        step, mark: Its position.
        phase: What its main thread does.
        idle: Seconds since its main thread passed the last mark.
        allowed: Seconds this phase may take.
        line: Where its main thread is in the code.
        waits: Whether that is inside a collective.
        busy: Own seconds in a step (median of the last ones); None: not known yet.
    """

    rank: int
    pid: int = 0
    host: str = field(default_factory=socket.gethostname)
    count: int = 0
    step: int = 0
    mark: int = 0
    phase: str = "start"
    idle: float = 0.0
    allowed: float = 0.0
    line: str = ""
    waits: bool = False
    busy: float | None = None

    def dump(self) -> str:
        """For the store."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: bytes) -> Beat:
        """From the store."""
        return cls(**json.loads(text))

    @property
    def place(self) -> str:
        """Rank, process and machine."""
        return (
            f"rank {self.rank} (pid {self.pid} on {self.host})" if self.pid else f"rank {self.rank}"
        )


@dataclass
class Seen:
    """A rank in the table of the one that judges.

    Attributes:
        beat: The last one heard.
        silent: Seconds since it was new.
        mute: Whether that is so long that its process is stopped, dead or cut off.
    """

    beat: Beat
    silent: float
    mute: bool

    @property
    def idle(self) -> float:
        """Seconds without progress of its main thread."""
        return self.beat.idle + self.silent

    @property
    def text(self) -> str:
        """For people."""
        b = self.beat
        if not b.pid:
            return f"{b.place}: never heard of in {self.silent:.0f} s"
        where = f"step {b.step}, phase {b.phase}" + (f", {b.line}" if b.line else "")
        if self.mute:
            return f"{b.place}: silent for {self.silent:.0f} s, last seen in {where}"
        return f"{b.place}: {self.idle:.0f} s in {where}"


def hung(table: list[Seen], silence_s: float) -> list[Seen]:
    """The ranks that hold up the others; [] while nobody has waited too long.

    Args:
        table: All ranks.
        silence_s: Silence after which a rank that has been heard of counts as lost.
    """
    lost = [s for s in table if s.silent > (silence_s if s.beat.pid else s.beat.allowed)]
    if lost:
        return lost
    behind = min((s.beat.step, s.beat.mark) for s in table)
    last = [s for s in table if (s.beat.step, s.beat.mark) == behind]
    if not any(s.idle > s.beat.allowed for s in last):
        return []
    # of ranks at the same mark, one that waits in a collective is not to blame
    return [s for s in last if s.mute] or [s for s in last if not s.beat.waits] or last


def slow(table: list[Seen]) -> list[Beat]:
    """Ranks whose own time in a step is over 1.5 times the median, and 10 ms more than it."""
    known = [s.beat for s in table if s.beat.busy is not None]
    if len(known) < 2:
        return []
    median = median_busy(known)
    return [b for b in known if (b.busy or 0) > max(_SLOW * median, median + _SLOW_FLOOR_S)]


def median_busy(beats: list[Beat]) -> float:
    """Of two ranks the faster one's."""
    return statistics.median_low([b.busy for b in beats if b.busy is not None] or [0.0])


def verdict(guilty: list[Seen], num_ranks: int, step: int, stacks: str) -> str:
    """One line: who, where, since when, and what to do; `step`: of the rank that judges."""
    named = "; ".join(s.text for s in guilty[:_NAMED])
    more = f" and {len(guilty) - _NAMED} more ranks" if len(guilty) > _NAMED else ""
    whole = " (all ranks: the network?)" if 1 < num_ranks == len(guilty) else ""
    stopped = [s.beat for s in guilty if s.mute and s.beat.pid]
    left = ", ".join(f"pid {b.pid} on {b.host}" for b in stopped[:_NAMED])
    remedy = f"; a stopped process stays: kill -9 {left}" if left else ""
    return f"training hangs in step {step}: {named}{more}{whole}; stacks in {stacks}{remedy}"
