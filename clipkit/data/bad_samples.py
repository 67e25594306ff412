"""Unusable samples: why one is, how many there are by cause and shard, and when a run must stop."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from clipkit.errors import DataError

_GRACE = 1000
_KEPT_SHARDS = 200


class BadSample(Exception):
    """One sample cannot be used; `cause` is a short word for the counters."""

    def __init__(self, cause: str, detail: str = "") -> None:
        super().__init__(detail or cause)
        self.cause = cause


class BadRecord(NamedTuple):
    """A sample that was due and not used. Numbers are from 0, -1 where they are not known.

    Attributes:
        shard, cause: Where it lies and what is wrong with it.
        key: Its key.
        source: Name of its source.
        step, batch_row: Its place in the order: row of a global batch.
        shard_row: Its row in the shard.
        substitute: Id of the sample that was trained instead.
        substitute_shard, substitute_key: Where that one lies.
    """

    shard: str
    cause: str
    key: str = ""
    source: str = ""
    step: int = -1
    batch_row: int = -1
    shard_row: int = -1
    substitute: int = -1
    substitute_shard: str = ""
    substitute_key: str = ""


@dataclass
class BadTotals:
    """How many samples were due, and how many of them were not usable.

    Attributes:
        seen: Samples that were due; each is delivered, itself or a substitute.
        causes, shards: Unusable ones, counted both ways.
    """

    seen: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    shards: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        """Unusable samples."""
        return sum(self.causes.values())

    def count(self, shard: str, cause: str, samples: int = 1) -> None:
        """Note unusable samples of one shard."""
        self.causes[cause] += samples
        self.shards[shard] += samples

    def plus(self, other: BadTotals) -> BadTotals:
        """Both together."""
        return BadTotals(
            self.seen + other.seen, self.causes + other.causes, self.shards + other.shards
        )

    def over(self, max_fraction: float, bad: int = 0, seen: int = 0) -> bool:
        """Whether they are too many, with so many more; under 1,000 seen samples count as 1,000."""
        return self.total + bad > max_fraction * max(self.seen + seen, _GRACE)

    def as_json(self, shards: int = _KEPT_SHARDS) -> dict[str, Any]:
        """Plain numbers; of the shards only the worst."""
        worst = dict(self.shards.most_common(shards))
        return {"seen": self.seen, "causes": dict(self.causes), "shards": worst}

    @classmethod
    def from_json(cls, data: dict[str, Any] | None) -> BadTotals:
        """What `as_json` gave; nothing for None."""
        if not data:
            return cls()
        return cls(int(data["seen"]), Counter(data["causes"]), Counter(data["shards"]))

    def text(self) -> str:
        """How many, why and where."""
        causes = ", ".join(f"{count} {cause}" for cause, count in self.causes.most_common(5))
        worst = ", ".join(os.path.basename(shard) for shard, _ in self.shards.most_common(3))
        return f"{self.total} of {self.seen} samples are unusable ({causes}; worst shards: {worst})"

    def message(self, max_fraction: float) -> str:
        """One line for the run that ends."""
        return (
            f"{self.text()}, over data.max_bad_fraction={max_fraction}; "
            f"mend the shards or raise the limit"
        )


class BadSampleCounter:
    """Running totals of one rank.

    Args:
        max_fraction: Share of bad samples that ends the run. It is held against at least
            1,000 samples, so that one bad file in the first batch does not end it.
        world_size: Ranks that deliver as many samples as this one. Alone it ends the run only
            when its own bad samples are too many for all of them.

    Attributes:
        own: Of this rank since the start of the process.
        before: Of all ranks, up to the checkpoint the run went on from.
        sink: Called with each record.
    """

    def __init__(self, max_fraction: float, world_size: int = 1) -> None:
        self.max_fraction, self.world_size = max_fraction, world_size
        self.own, self.before = BadTotals(), BadTotals()
        self.sink: Callable[[BadRecord], None] | None = None

    @property
    def seen(self) -> int:
        """Samples this rank delivered since its start."""
        return self.own.seen

    @property
    def total(self) -> int:
        """Bad samples of this rank since its start."""
        return self.own.total

    @property
    def causes(self) -> Counter[str]:
        """Of this rank since its start."""
        return self.own.causes

    @property
    def shards(self) -> Counter[str]:
        """Of this rank since its start."""
        return self.own.shards

    def add(self, seen: int, bad: Sequence[tuple[Any, ...]], step: int = -1) -> None:
        """Count `seen` delivered samples and the records (shard, cause, ...) of bad ones.

        Args:
            seen: Delivered samples.
            bad: Fields of BadRecord, from the first on.
            step: Of the batch, for records that do not say.

        Raises:
            DataError: Over the limit; names rate, causes and the worst shards.
        """
        self.own.seen += seen
        self.note(bad, step)
        if bad:
            self._check()

    def note(self, bad: Iterable[tuple[Any, ...]], step: int = -1) -> None:
        """Count records without a word about the limit."""
        for fields in bad:
            record = BadRecord(*fields)
            if record.step < 0:
                record = record._replace(step=step)
            self.own.count(record.shard, record.cause)
            if self.sink is not None:
                self.sink(record)

    def _check(self) -> None:
        seen = self.own.seen * self.world_size
        if self.before.over(self.max_fraction, self.own.total, seen):
            totals = self.before.plus(BadTotals(seen, self.own.causes, self.own.shards))
            least = "at least " if self.world_size > 1 else ""  # the others may have some too
            raise DataError(f"{least}{totals.message(self.max_fraction)}")


def check_lost(lost: Iterable[tuple[str, str, int]], held: int, max_fraction: float) -> BadTotals:
    """Samples known to be missing before any is read.

    Args:
        lost: (shard, cause, samples).
        held: Samples that are there.
        max_fraction: Share of both that ends the run.

    Raises:
        DataError: Over the limit; names causes and the worst shards.
    """
    lost = list(lost)
    totals = BadTotals(held + sum(samples for *_, samples in lost))
    for shard, cause, samples in lost:
        totals.count(shard, cause, samples)
    if totals.total > max_fraction * totals.seen:
        raise DataError(totals.message(max_fraction))
    return totals
