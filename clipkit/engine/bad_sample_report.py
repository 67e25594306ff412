"""Bad samples of a run: listed by each rank in a file of its own, counted over all ranks."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import torch

from clipkit.data.bad_samples import BadRecord, BadSampleCounter, BadTotals
from clipkit.dist.collectives import all_gather
from clipkit.dist.group import World
from clipkit.engine.json_lines import JsonLines, keep_until
from clipkit.errors import DataError

_MAX_LINES = 10_000


class BadSampleList:
    """RUN/bad_samples.rank<k>.jsonl, one line per sample that was replaced, the first 10,000.

    `step` is the one that metrics.jsonl gives the batch. A disk that takes no line is no trouble:
    the samples are counted elsewhere.

    Args:
        folder: The run folder.
        rank: Of this process.
        max_lines: Listed at most; the last line says that there were more.
    """

    def __init__(self, folder: Path, rank: int, max_lines: int = _MAX_LINES) -> None:
        self.path = folder / f"bad_samples.rank{rank}.jsonl"
        self._file = JsonLines(self.path)
        self._max_lines, self._lines = max_lines, -1

    def __call__(self, record: BadRecord) -> None:
        """Append a line."""
        if self._lines < 0:
            self._lines = _num_lines(self.path)
        if self._lines > self._max_lines:
            return
        line = {**record._asdict(), "step": record.step + 1}
        if self._lines == self._max_lines:
            line = {"step": record.step + 1, "note": "further ones are counted, not listed"}
        self._file.write(line)
        self._lines += 1

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def _num_lines(path: Path) -> int:
    try:
        with open(path, "rb") as file:
            return sum(1 for _ in file)
    except OSError:
        return 0


def forget_after(folder: Path, step: int) -> None:
    """Drop the lines of all ranks that a run resumed after `step` will write again."""
    for path in folder.glob("bad_samples.rank*.jsonl"):
        with contextlib.suppress(OSError):  # a full disk: they stay
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
