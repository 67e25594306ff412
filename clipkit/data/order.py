"""The order of training: a pure function (seed, position) -> sample, the same for every layout.

Per epoch the shards are permuted and their samples laid on one line; the line is cut into C equal
streams; within a stream, windows of W samples are permuted. Global batch t takes the next B / C
samples of each stream. Rank and worker count never enter, and any position is reached in O(1).
Left out of an epoch: fewer than B + C samples, others each time.

A draw is numbered 0, 1, ... without end; it stands for an (epoch, place on that epoch's line).
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from clipkit.errors import DataError

_CACHED_WINDOWS = 64  # at least; two of each stream
_CACHED_EPOCHS = 4


class Order:
    """Maps rows of global batches to samples.

    Args:
        counts: Samples of each shard.
        seed: Of the permutations.
        global_batch_size: B.
        streams: C, a divisor of B; None: gcd(B, 64).
        window: W, samples per permuted window of a stream.

    Raises:
        DataError: Fewer samples than one global batch, or streams that do not divide it.
    """

    def __init__(
        self,
        counts: Sequence[int] | np.ndarray,
        *,
        seed: int,
        global_batch_size: int,
        streams: int | None = None,
        window: int = 4096,
    ) -> None:
        self.counts = np.asarray(counts, dtype=np.int64)
        self.seed, self.batch, self.window = seed, global_batch_size, window
        self.streams = streams or math.gcd(global_batch_size, 64)
        total = int(self.counts.sum())
        if self.batch % self.streams:
            raise DataError(
                f"data.streams={self.streams} must divide train.global_batch_size={self.batch}"
            )
        self.stream_length = total // self.streams
        self.per_batch = self.batch // self.streams
        self.batches_per_epoch = self.stream_length // self.per_batch
        if self.batches_per_epoch == 0:
            raise DataError(
                f"{total} samples are fewer than one global batch of {self.batch} "
                f"(in {self.streams} streams); lower train.global_batch_size or add shards"
            )
        self._first_id = np.concatenate([[0], np.cumsum(self.counts)])
        self._stride = _stride(total)
        self._epochs: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._windows: OrderedDict[tuple[int, int, int], np.ndarray] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """All but the caches: a worker fills its own."""
        return {**self.__dict__, "_epochs": OrderedDict(), "_windows": OrderedDict()}

    def _line(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(permuted shard numbers, line position at which each begins) of an epoch."""
        if epoch not in self._epochs:
            shards = np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(
                len(self.counts)
            )
            begins = np.concatenate([[0], np.cumsum(self.counts[shards])])
            self._epochs[epoch] = (shards, begins)
            while len(self._epochs) > _CACHED_EPOCHS:
                self._epochs.popitem(last=False)
        self._epochs.move_to_end(epoch)
        return self._epochs[epoch]

    def _window(self, epoch: int, stream: int, number: int) -> np.ndarray:
        """Permuted offsets within one window of one stream."""
        key = (epoch, stream, number)
        if key not in self._windows:
            length = min(self.window, self.stream_length - number * self.window)
            generator = np.random.Generator(np.random.PCG64([self.seed, *key]))
            # Hundreds are kept, by each worker: two bytes an entry instead of eight.
            self._windows[key] = generator.permutation(length).astype(np.min_scalar_type(length))
            while len(self._windows) > max(_CACHED_WINDOWS, 2 * self.streams):
                self._windows.popitem(last=False)
        self._windows.move_to_end(key)
        return self._windows[key]

    def draw(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What each draw stands for.

        Args:
            numbers: (n,) int64 draws, in any order.

        Returns:
            (epochs, places on their lines): (n,) int64 each.
        """
        epoch, within = np.divmod(numbers, self.batches_per_epoch * self.batch)
        t, row = np.divmod(within, self.batch)
        stream, offset = np.divmod(row, self.per_batch)
        window, inside = np.divmod(t * self.per_batch + offset, self.window)
        keys = np.stack([epoch, stream, window])
        by_window = np.lexsort(keys[::-1])
        keys = keys[:, by_window]
        first = np.ones(len(numbers), dtype=bool)  # of its window, in that sorting
        first[1:] = (keys[:, 1:] != keys[:, :-1]).any(axis=0)
        begins = np.flatnonzero(first)
        places = stream * self.stream_length + window * self.window
        for key, here in zip(keys[:, begins].T.tolist(), np.split(by_window, begins[1:])):
            places[here] += self._window(*key)[inside[here]]
        return epoch, places

    def locate(
        self, epochs: np.ndarray | int, places: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Samples at places on the lines of epochs.

        Args:
            epochs: (n,) int64, or one for all.
            places: (n,) int64.

        Returns:
            (part, row within it, id over the data set): (n,) int64 each.
        """
        epochs = np.broadcast_to(epochs, places.shape)
        part, row = np.empty_like(places), np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            shards, begins = self._line(int(epoch))
            slot = np.searchsorted(begins, places[here], side="right") - 1
            part[here], row[here] = shards[slot], places[here] - begins[slot]
        return part, row, self._first_id[part] + row

    def substitute(self, place: int, attempt: int) -> int:
        """The place that stands in for a bad one: `attempt` strides on along the line, cyclic.

        What is damaged lies together: the next places would be as bad, and one good place after
        them would stand in for all.
        """
        total = int(self._first_id[-1])
        return (place + attempt * self._stride) % total

    def parameters(self) -> dict[str, int]:
        """What must be equal for a position to mean the same sample."""
        return {
            "seed": self.seed,
            "global_batch_size": self.batch,
            "streams": self.streams,
            "window": self.window,
        }


def _stride(total: int) -> int:
    """A step that reaches all of `total` places, the first few far apart: by the golden section."""
    golden = round(total * (math.sqrt(5) - 1) / 2)
    near = (golden + sign * away for away in itertools.count() for sign in (1, -1))
    return next(step for step in near if math.gcd(step, total) == 1)


def batch_checksum(ids: np.ndarray, first_row: int) -> int:
    """Order-sensitive 31-bit checksum of a rank's ids; the sum over ranks is the global batch's."""
    rows = np.arange(first_row, first_row + len(ids))
    text = np.stack([rows, np.asarray(ids, dtype=np.int64)], axis=1)
    return (
        sum(
            int.from_bytes(hashlib.blake2b(r.tobytes(), digest_size=4).digest(), "big") >> 1
            for r in text
        )
        % 2**31
    )
