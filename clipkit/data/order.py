"""The order of training: a pure function (seed, position) -> sample, the same for every layout.

Per epoch the shards are permuted and their samples laid on one line; the line is cut into C equal
streams; within a stream, windows of W samples are permuted. Global batch t takes the next B / C
samples of each stream. Rank and worker count never enter, and any position is reached in O(1).
Left out of an epoch: fewer than B + C samples, others each time.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from clipkit.errors import DataError

_CACHED_WINDOWS = 1024


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
        counts: Sequence[int],
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
        self._epochs: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._windows: OrderedDict[tuple[int, int, int], np.ndarray] = OrderedDict()

    def _line(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(permuted shard numbers, line position at which each begins) of an epoch."""
        if epoch not in self._epochs:
            shards = np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(
                len(self.counts)
            )
            begins = np.concatenate([[0], np.cumsum(self.counts[shards])])
            self._epochs[epoch] = (shards, begins)
            while len(self._epochs) > 2:
                self._epochs.popitem(last=False)
        return self._epochs[epoch]

    def _window(self, epoch: int, stream: int, number: int) -> np.ndarray:
        """Permuted offsets of one window within its stream."""
        key = (epoch, stream, number)
        if key not in self._windows:
            start = number * self.window
            length = min(self.window, self.stream_length - start)
            generator = np.random.Generator(np.random.PCG64([self.seed, epoch, stream, number]))
            self._windows[key] = start + generator.permutation(length)
            while len(self._windows) > max(_CACHED_WINDOWS, 2 * self.streams):
                self._windows.popitem(last=False)
        return self._windows[key]

    def line_positions(self, step: int, rows: slice) -> tuple[int, np.ndarray]:
        """Epoch, and the place on that epoch's line of rows `rows` of global batch `step`."""
        epoch, t = divmod(step, self.batches_per_epoch)
        row = np.arange(rows.start, rows.stop)
        stream, offset = row // self.per_batch, t * self.per_batch + row % self.per_batch
        places = np.empty(len(row), dtype=np.int64)
        for s in np.unique(stream):
            for w in np.unique(offset[stream == s] // self.window):
                here = (stream == s) & (offset // self.window == w)
                places[here] = (
                    s * self.stream_length
                    + self._window(epoch, s, w)[offset[here] - w * self.window]
                )
        return epoch, places

    def locate(self, epoch: int, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(shard, index within it, id over the data set) of places on an epoch's line."""
        shards, begins = self._line(epoch)
        slot = np.searchsorted(begins, places, side="right") - 1
        shard, index = shards[slot], places - begins[slot]
        return shard, index, self._first_id[shard] + index

    def substitute(self, place: int, attempt: int) -> int:
        """The place that stands in for a bad one: the `attempt`-th next in its stream, cyclic."""
        stream = min(place // self.stream_length, self.streams - 1)
        within = (place - stream * self.stream_length + attempt) % self.stream_length
        return stream * self.stream_length + within

    def parameters(self) -> dict[str, int]:
        """What must be equal for a position to mean the same sample."""
        return {
            "seed": self.seed,
            "global_batch_size": self.batch,
            "streams": self.streams,
            "window": self.window,
        }

    def sample_seed(self, step: int, row: int) -> list[int]:
        """Seed of a sample's augmentation: f(seed, step, row), never a worker's."""
        return [self.seed, 1, step, row]


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
