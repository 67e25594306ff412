"""Bad samples of a run: listed by each rank in a file of its own, counted over all ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TextIO

import torch

from clipkit.config.redact import redact
from clipkit.data.bad_samples import BadRecord, BadSampleCounter, BadTotals
from clipkit.dist.collectives import all_gather
from clipkit.dist.group import World
from clipkit.engine.log import keep_until
from clipkit.errors import DataError

_MAX_LINES = 10_000


class BadSampleList:
    """RUN/bad_samples.rank<k>.jsonl, one line per sample that was replaced, the first 10,000.

    `step` is the one that metrics.jsonl gives the batch.

    Args:
        folder: The run folder.
        rank: Of this process.
        max_lines: Listed at most; the last line says that there were more.
    """

    def __init__(self, folder: Path, rank: int, max_lines: int = _MAX_LINES) -> None:
        self.path = folder / f"bad_samples.rank{rank}.jsonl"
        self._max_lines, self._lines = max_lines, -1
        self._file: TextIO | None = None

    def __call__(self, record: BadRecord) -> None:
        """Append a line."""
        if self._file is None:
            self._file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115  (closed by close)
            self._file.seek(0)
            self._lines = sum(1 for _ in self._file)
        if self._lines > self._max_lines:
            return
        line = {**record._asdict(), "step": record.step + 1}
        if self._lines == self._max_lines:
            line = {"step": record.step + 1, "note": "further ones are counted, not listed"}
        self._file.write(json.dumps(redact(line)) + "\n")
        self._file.flush()
        self._lines += 1

    def close(self) -> None:
        """Flush and leave."""
        if self._file is not None:
            self._file.close()
            self._file = None


def forget_after(folder: Path, step: int) -> None:
    """Drop the lines of all ranks that a run resumed after `step` will write again."""
    for path in folder.glob("bad_samples.rank*.jsonl"):
        keep_until(path, step)


def shared_totals(counter: BadSampleCounter, world: World, shards: int = 200) -> BadTotals:
    """Totals of all ranks, those before a restart included. A collective.

    Args:
        counter: Of this rank.
        world: Of the ranks.
        shards: Of each rank so many of the worst; 0 keeps it small.
    """
    data = json.dumps(counter.own.as_json(shards)).encode()
    length = world.max_int(len(data))
    padded = torch.tensor([list(data.ljust(length))], dtype=torch.uint8, device=world.device)
    totals = counter.before
    for row in all_gather(padded, world.world_size).cpu().numpy():
        totals = totals.plus(BadTotals.from_json(json.loads(row.tobytes())))
    return totals


def check_share(counter: BadSampleCounter, bad: int, seen: int, world: World) -> None:
    """End the run on all ranks, with the same words, where too many samples are bad.

    Args:
        counter: Of this rank.
        bad, seen: Sums over ranks since the start of the process.
        world: Of the ranks.

    Raises:
        DataError: Names rate, causes and the worst shards.
    """
    if bad and counter.before.over(counter.max_fraction, bad, seen):
        raise DataError(shared_totals(counter, world).message(counter.max_fraction))
