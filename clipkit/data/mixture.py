"""Global batches out of several sources: which source's next draw each position of the run is.

Position n = step * B + row. A fixed block of slots, repeated without end, gives every position its
source; the draws taken from a source before n are a closed form, so its epoch and place follow.

Letters: B global batch, S sources, P slots of a block, q slots of one source, b rows asked for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clipkit.data.hard_batches import HardBatches
from clipkit.data.order import Order
from clipkit.errors import ConfigError, DataError

_SLOTS = 8192
_CACHED_WINDOWS = 4
_STREAMS = 64


@dataclass(frozen=True, eq=False)
class Drawn:
    """Rows of a global batch, (b,) int64 each: where they come from.

    `id` counts through all sources: those of a source begin after the samples of the ones before.
    """

    source: np.ndarray
    epoch: np.ndarray  # of its source
    place: np.ndarray  # on the line of that epoch
    part: np.ndarray
    row: np.ndarray
    id: np.ndarray


class Mixture:
    """The order of training over one or several sources, the same for every layout.

    One source gives its Order, unchanged. Of several, each has its own epochs.

    Args:
        orders: One per source, each with a seed of its own (see `order_for_mixture`).
        seed: Of the augmentations.
        global_batch_size: B; one source alone must have this batch.
        weights: Shares of the sources, of any sum; None: their sizes. Rounded to 1 / 8192.
        hard: Puts neighbours into one batch.

    Raises:
        ConfigError: Weights that do not fit the sources, or too small a one.
        DataError: Neighbours of another data set.
    """

    def __init__(
        self,
        orders: Sequence[Order],
        *,
        seed: int,
        global_batch_size: int,
        weights: Sequence[float] | None = None,
        hard: HardBatches | None = None,
    ) -> None:
        sizes = np.array([order.counts.sum() for order in orders])
        slots = _quotas(sizes if weights is None else weights, len(orders))
        alone = len(orders) == 1
        assert not alone or orders[0].batch == global_batch_size
        assert len({order.seed for order in orders}) == len(orders), "sources share a seed"
        if hard is not None:
            hard.check(int(sizes.sum()))
        self.orders, self.seed, self.batch, self.hard = list(orders), seed, global_batch_size, hard
        self.batches_per_epoch = orders[0].batches_per_epoch if alone else None
        self._first_id = np.cumsum(sizes) - sizes
        self._quota = slots
        self._source = _interleave(slots)  # (P,)
        self._earlier = np.empty_like(self._source)  # (P,) slots of the same source before this one
        for s, quota in enumerate(slots):
            self._earlier[self._source == s] = np.arange(quota)
        self._hard_windows: OrderedDict[int, np.ndarray] = OrderedDict()
        if hard is not None:  # positions after which windows begin anew
            self._hard_span = (self.batches_per_epoch or hard.batches) * global_batch_size

    def __getstate__(self) -> dict[str, Any]:
        """All but the cache: a worker fills its own."""
        return {**self.__dict__, "_hard_windows": OrderedDict()}

    def rows(self, step: int, rows: slice) -> Drawn:
        """Samples of rows [start, stop) of global batch `step`."""
        return self._draw(self._positions(step * self.batch + np.arange(rows.start, rows.stop)))

    def _positions(self, positions: np.ndarray) -> np.ndarray:
        """The position whose sample stands at each position: another one of its hard window."""
        if self.hard is None:
            return positions
        length = self.hard.batches * self.batch
        span, within = np.divmod(positions, self._hard_span)
        number, inside = np.divmod(within, length)
        window = span * -(-self._hard_span // length) + number
        moved = np.empty_like(positions)
        for w in np.unique(window):
            here = window == w
            moved[here] = self._hard_window(int(w))[inside[here]]
        return moved

    def _hard_window(self, window: int) -> np.ndarray:
        """Positions of a window in the order they are trained in; the last of a span is shorter."""
        assert self.hard is not None
        if window not in self._hard_windows:
            length = self.hard.batches * self.batch
            span, number = divmod(window, -(-self._hard_span // length))
            stop = min((number + 1) * length, self._hard_span)
            positions = span * self._hard_span + np.arange(number * length, stop)
            ids = self._draw(positions).id
            self._hard_windows[window] = positions[self.hard.permutation(window, ids, self.batch)]
            while len(self._hard_windows) > _CACHED_WINDOWS:
                self._hard_windows.popitem(last=False)
        self._hard_windows.move_to_end(window)
        return self._hard_windows[window]

    def _draw(self, positions: np.ndarray) -> Drawn:
        block, slot = np.divmod(positions, len(self._source))
        source = self._source[slot]
        number = block * self._quota[source] + self._earlier[slot]
        epoch, place, part, row, ids = np.empty((5, len(positions)), dtype=np.int64)
        for s in np.unique(source):
            here, order = source == s, self.orders[s]
            epoch[here], place[here] = order.draw(number[here])
            part[here], row[here], ids[here] = order.locate(epoch[here], place[here])
        return Drawn(source, epoch, place, part, row, self._first_id[source] + ids)

    def substitute(self, drawn: Drawn, i: int, attempt: int) -> tuple[int, int, int, int]:
        """(source, part, row, id) of the sample that stands in for row i of `drawn`.

        It is of the same source and epoch, far away: see Order.substitute. 0: the row itself.
        """
        source = int(drawn.source[i])
        order = self.orders[source]
        place = np.array([order.substitute(int(drawn.place[i]), attempt)])
        part, row, ids = order.locate(drawn.epoch[i], place)
        return source, int(part[0]), int(row[0]), int(self._first_id[source] + ids[0])

    def upcoming(self, step: int, rows: slice, steps: int) -> list[np.ndarray]:
        """Parts that these rows of batches [step, step + steps) touch, per source, first use first.

        For prefetching; it names no parts of substitutes.
        """
        batches = (step + np.arange(steps))[:, None] * self.batch
        drawn = self._draw(self._positions((batches + np.arange(rows.start, rows.stop)).ravel()))
        touched = []
        for s in range(len(self.orders)):
            parts = drawn.part[drawn.source == s]
            touched.append(parts[np.sort(np.unique(parts, return_index=True)[1])])
        return touched

    def sample_seed(self, step: int, row: int) -> list[int]:
        """Seed of a sample's augmentation: f(seed, step, row), never a worker's."""
        return [self.seed, 1, step, row]

    def parameters(self) -> dict[str, Any]:
        """What must be equal for a position to mean the same sample; JSON."""
        hard = None if self.hard is None else self.hard.parameters()
        if len(self.orders) == 1:
            return {**self.orders[0].parameters(), "sources": None, "weights": None, "hard": hard}
        return {
            "seed": self.seed,
            "global_batch_size": self.batch,
            "sources": [order.parameters() for order in self.orders],
            "weights": (self._quota / len(self._source)).tolist(),
            "hard": hard,
        }


def order_for_mixture(
    counts: Sequence[int] | np.ndarray,
    *,
    seed: int,
    number: int,
    streams: int | None = None,
    window: int = 4096,
) -> Order:
    """Order of one source of several; it may be smaller than a global batch.

    Consecutive draws go round the streams, so that also the few of a small share come from far
    apart. No stream is shorter than a window: fewer samples than streams are left out of an epoch,
    and of a source smaller than two windows none.

    Args:
        counts: Samples of each part.
        seed: Of the run; source 0 keeps it, any other has its own drawn from it.
        number: Which source of the run this is.
        streams: At most; None: 64.
        window: Samples per permuted window of a stream.

    Raises:
        DataError: No samples.
    """
    total = int(np.sum(counts, dtype=np.int64))
    if total == 0:
        raise DataError(f"data.sources[{number}] holds no samples; mend its shards or take it out")
    if number:
        state = np.random.SeedSequence([seed, 2, number]).generate_state(1, np.uint64)
        seed = int(state[0] >> np.uint64(1))
    streams = max(1, min(streams or _STREAMS, total // window))
    return Order(counts, seed=seed, global_batch_size=streams, streams=streams, window=window)


def _quotas(weights: Sequence[float] | np.ndarray, sources: int) -> np.ndarray:
    """(S,) slots of each source in a block, by largest remainder."""
    shares = np.asarray(weights, dtype=np.float64)
    if shares.shape != (sources,):
        raise ConfigError(f"{shares.size} weights for {sources} sources; give each one weight")
    wrong = np.flatnonzero(~(np.isfinite(shares) & (shares >= 0)))
    if len(wrong):
        raise ConfigError(
            f"data.sources[{wrong[0]}].weight={shares[wrong[0]]:g}; give a number of at least 0"
        )
    if not shares.any():
        raise ConfigError("data.sources: every weight is 0; give one source a positive weight")
    if sources == 1:
        return np.ones(1, dtype=np.int64)
    exact = shares / shares.sum() * _SLOTS
    slots = np.floor(exact).astype(np.int64)
    slots[np.argsort(slots - exact, kind="stable")[: _SLOTS - slots.sum()]] += 1
    missed = np.flatnonzero((shares > 0) & (slots == 0))
    if len(missed):
        raise ConfigError(
            f"data.sources[{missed[0]}] has {exact[missed[0]] / _SLOTS:.2g} of the weights' sum, "
            f"less than 1/{_SLOTS}; raise its weight or take it out"
        )
    return slots


def _interleave(slots: np.ndarray) -> np.ndarray:
    """(P,) source of each slot; every prefix holds each source's share to within one slot.

    The chairman assignment of Tijdeman 1980: of the sources far enough behind their share, the one
    whose next slot is due first. Whole numbers throughout, so that all machines agree.
    """
    total, scale = int(slots.sum()), 2 * len(slots) - 2
    if scale == 0:
        return np.zeros(total, dtype=np.int64)
    divisor = np.maximum(slots, 1)
    behind = np.zeros_like(slots)  # scale * (share so far * total - total * slots so far)
    order = np.empty(total, dtype=np.int64)
    for n in range(total):
        behind += scale * slots
        due = (total * (scale - 1) - behind) / divisor
        due[behind < total] = np.inf
        order[n] = s = due.argmin()
        behind[s] -= scale * total
    return order
