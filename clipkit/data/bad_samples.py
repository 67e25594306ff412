"""Unusable samples: why one is, how many there are by cause and shard, and when a run must stop."""

from __future__ import annotations

import os
from collections import Counter

from clipkit.errors import DataError

_GRACE = 1000


class BadSample(Exception):
    """One sample cannot be used; `cause` is a short word for the counters."""

    def __init__(self, cause: str, detail: str = "") -> None:
        super().__init__(detail or cause)
        self.cause = cause


class BadSampleCounter:
    """Running totals of one rank.

    Args:
        max_fraction: Share of bad samples that ends the run. It is held against at least
            1,000 samples, so that one bad file in the first batch does not end it.
    """

    def __init__(self, max_fraction: float) -> None:
        self.max_fraction = max_fraction
        self.seen = 0
        self.causes: Counter[str] = Counter()
        self.shards: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """Bad samples so far."""
        return sum(self.causes.values())

    def add(self, seen: int, bad: list[tuple[str, str]]) -> None:
        """Count `seen` delivered samples and the (shard, cause) of those that were replaced.

        Raises:
            DataError: Over the limit; names rate, causes and the worst shards.
        """
        self.seen += seen
        for shard, cause in bad:
            self.causes[cause] += 1
            self.shards[shard] += 1
        if bad and self.total > self.max_fraction * max(self.seen, _GRACE):
            raise DataError(self.message())

    def message(self) -> str:
        """One line that says how many, why and where."""
        causes = ", ".join(f"{count} {cause}" for cause, count in self.causes.most_common(3))
        worst = ", ".join(os.path.basename(shard) for shard, _ in self.shards.most_common(3))
        return (
            f"{self.total} of {self.seen + self.total} samples are unusable "
            f"({causes}; worst shards: {worst}), "
            f"over data.max_bad_fraction={self.max_fraction}; mend the shards or raise the limit"
        )
