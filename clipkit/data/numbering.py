"""Files made ahead number samples through the shards they saw: are these the shards of a run?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from clipkit.data.sources import Source


class Shard(NamedTuple):
    """A shard as such a file knows it.

    Attributes:
        name: Last part of its path or URL; it may have been moved.
        samples: How many.
        digest: Of its index, see `Source.part_digest`; "" if not known.
    """

    name: str
    samples: int
    digest: str


def shards_of(sources: Sequence[Source]) -> list[Shard]:
    """Those of a run, in the order in which its samples are numbered."""
    return [
        Shard(_base_name(source.part_name(part)), int(count), source.part_digest(part))
        for source in sources
        for part, count in enumerate(source.counts)
    ]


def read_shards(told: Any) -> list[Shard]:
    """Those of a file's list of {"path", "rows", "index"}; "index" may be left out.

    Raises:
        ValueError, KeyError, TypeError: It is no such list.
    """
    return [
        Shard(_base_name(str(s["path"])), int(s["rows"]), str(s.get("index", ""))) for s in told
    ]


def difference(own: Sequence[Shard], given: Sequence[Shard]) -> str:
    """The first one between a file's shards and a run's, in words; "" if there is none."""
    if len(own) != len(given):
        return f"it counts {len(own)} shards, the run has {len(given)}"
    for number, (ours, theirs) in enumerate(zip(own, given)):
        if ours[:2] != theirs[:2]:
            return (
                f"shard {number} is {ours.name} with {ours.samples} samples, in the run "
                f"{theirs.name} with {theirs.samples}"
            )
        if ours.digest and theirs.digest and ours.digest != theirs.digest:
            return f"shard {number} is another {ours.name}, of as many samples"
    return ""


def _base_name(path: str) -> str:
    return path.rpartition("/")[2]
