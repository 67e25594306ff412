"""Indexed mode: batches in the exact order of `order.py`, whatever the world size and worker count.

Each DataLoader item is this rank's share of one global batch, so workers and prefetching cannot
change the order; the state is the number of *trained* batches, prefetched ones are simply rebuilt.
"""

from __future__ import annotations

import atexit
import os
import signal
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clipkit.contracts import Batch
from clipkit.data.bad_samples import BadSample, BadSampleCounter
from clipkit.data.order import Order
from clipkit.data.samples import Sample, SampleReader, collate
from clipkit.data.tar_index import TarIndex, manifest_hash
from clipkit.errors import CheckpointError, DataError

_OPEN_FILES = 64
_MAX_ATTEMPTS = 64
_GRACE_S = 120
# A worker hands its DataError over: raised there, it would arrive wrapped in a worker's traceback.
Delivered = tuple[Batch | DataError, list[tuple[str, str]]]


class _Batches(Dataset[Delivered]):
    """Item t: this rank's rows of global batch t, and the bad samples met on the way."""

    def __init__(
        self,
        indexes: list[TarIndex],
        order: Order,
        reader: SampleReader,
        tokenizer: Callable[[list[str]], Tensor],
        rows: slice,
    ) -> None:
        self.indexes, self.order, self.reader = indexes, order, reader
        self.tokenizer, self.rows = tokenizer, rows
        self._files: OrderedDict[str, int] = OrderedDict()

    def __getitem__(self, step: int) -> Delivered:
        bad: list[tuple[str, str]] = []
        epoch, places = self.order.line_positions(step, self.rows)
        try:
            samples = [
                self._sample(epoch, int(place), step, self.rows.start + i, bad)
                for i, place in enumerate(places)
            ]
        except DataError as error:
            return error, bad
        return collate(samples, self.tokenizer), bad

    def _sample(
        self, epoch: int, place: int, step: int, row: int, bad: list[tuple[str, str]]
    ) -> Sample:
        for attempt in range(_MAX_ATTEMPTS):
            where = np.array([self.order.substitute(place, attempt)])
            shard, index, sample_id = (int(x[0]) for x in self.order.locate(epoch, where))
            rng = np.random.Generator(np.random.PCG64(self.order.sample_seed(step, row)))
            try:
                return self.reader.read(self._members(self.indexes[shard], index), sample_id, rng)
            except BadSample as error:
                bad.append((self.indexes[shard].path, error.cause))
        causes = ", ".join(sorted({cause for _, cause in bad}))
        raise DataError(
            f"{_MAX_ATTEMPTS} samples in a row are unusable ({causes}), "
            f"last in {bad[-1][0]}; mend the shards"
        )

    def _members(self, index: TarIndex, sample: int) -> dict[str, bytes]:
        members = {}
        for m in range(index.starts[sample], index.starts[sample + 1]):
            extension = index.extensions[index.member_extension[m]]
            if extension in self.reader.wanted:
                size = int(index.sizes[m])
                if size > self.reader.max_bytes:
                    raise BadSample("too_many_bytes")
                try:
                    data = os.pread(self._open(index.path), size, int(index.offsets[m]))
                except OSError as error:
                    raise BadSample("unreadable_shard", str(error)) from None
                if len(data) < size:
                    raise BadSample("shard_cut_short")
                members[extension] = data
        return members

    def _open(self, path: str) -> int:
        key = f"{os.getpid()}:{path}"
        if key not in self._files:
            while len(self._files) >= _OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
            self._files[key] = os.open(path, os.O_RDONLY)
        self._files.move_to_end(key)
        return self._files[key]


class IndexedLoader:
    """Endless iterator of this rank's batches, seekable by `load_state_dict`.

    Args:
        indexes: One per shard.
        order: Position -> sample.
        reader: Bytes -> Sample.
        tokenizer: Captions -> (n, L).
        rank, world_size: This rank's share of each global batch.
        workers: Loader processes; 0 decodes in this one.
        max_bad_fraction: See BadSampleCounter.
    """

    def __init__(
        self,
        indexes: list[TarIndex],
        order: Order,
        reader: SampleReader,
        tokenizer: Callable[[list[str]], Tensor],
        *,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        max_bad_fraction: float = 0.01,
    ) -> None:
        local = order.batch // world_size
        rows = slice(rank * local, (rank + 1) * local)
        self.order, self.workers, self.step = order, workers, 0
        self.bad = BadSampleCounter(max_bad_fraction)
        self._batches = _Batches(indexes, order, reader, tokenizer, rows)
        self._manifest = manifest_hash(indexes)

    @property
    def batches_per_epoch(self) -> int:
        """Global batches per epoch."""
        return self.order.batches_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        """Batches from the current position on; advancing marks the previous one as consumed."""
        loader = DataLoader(
            self._batches,
            batch_size=None,
            sampler=_Counting(self.step),
            num_workers=self.workers,
            prefetch_factor=2 if self.workers else None,
            worker_init_fn=begin_worker,
            pin_memory=torch.cuda.is_available(),
        )
        for delivered in start_workers(loader):
            batch = admit(delivered, self.bad)
            self.step += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Position and all that gives it meaning; holds no world size and no worker count."""
        return {
            "mode": "indexed",
            "step": self.step,
            "order": self.order.parameters(),
            "manifest": self._manifest,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the last trained batch.

        Raises:
            CheckpointError: Another data set or another order; names what differs.
        """
        check_state(state, self.state_dict())
        self.step = int(state["step"])


def admit(delivered: Delivered, counter: BadSampleCounter) -> Batch:
    """Count a worker's bad samples and take its batch.

    Raises:
        DataError: The worker's own, or too many bad samples.
    """
    batch, bad = delivered
    if isinstance(batch, DataError):
        raise batch
    counter.add(batch.num_samples, bad)
    return batch


def check_state(state: dict[str, Any], own: dict[str, Any]) -> None:
    """Compare a saved loader state with this run's.

    Raises:
        CheckpointError: Names what differs and the remedy.
    """
    if state.get("mode") != own["mode"]:
        raise CheckpointError(
            f"the checkpoint was trained with data.mode={state.get('mode')}; keep it or start anew"
        )
    for key, value in own["order"].items():
        if state["order"].get(key) != value:
            raise CheckpointError(
                f"the data order differs from the checkpoint's: "
                f"{key} is {value}, was {state['order'].get(key)}; "
                f"restore it, or start a new run from these weights (model.pretrained)"
            )
    if state["manifest"] != own["manifest"]:
        raise CheckpointError(
            "data.train is not the data set of the checkpoint (shards or samples differ); "
            "restore it, or start a new run from these weights (model.pretrained)"
        )


class _Counting:
    """Sampler: start, start + 1, ..."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __iter__(self) -> Iterator[int]:
        step = self.start
        while True:
            yield step
            step += 1


def begin_worker(worker: int) -> None:
    """One thread each; a signal to the whole group leaves the main process time to save.

    Ctrl-C and SIGUSR1 are the main process's alone. The first SIGTERM ends the worker after a
    grace (SIGALRM's default action), the second at once, so that no exit can wait for it.
    """
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)

    def leave_later(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.alarm(_GRACE_S)

    signal.signal(signal.SIGTERM, leave_later)


def start_workers(loader: DataLoader[Delivered]) -> Iterator[Delivered]:
    """iter(loader) whose workers are told to end before the interpreter waits for them."""
    batches = iter(loader)
    reference = weakref.ref(batches)

    def end() -> None:
        left = reference()
        if left is not None and hasattr(left, "_shutdown_workers"):
            left._shutdown_workers()

    atexit.register(end)
    return batches
