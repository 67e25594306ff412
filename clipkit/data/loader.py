"""Indexed mode: batches in the exact order of `mixture.py`, whatever the ranks and workers.

Each DataLoader item is this rank's share of one global batch, so workers and prefetching cannot
change the order; the state is the number of *trained* batches, prefetched ones are simply rebuilt.
"""

from __future__ import annotations

import atexit
import signal
import traceback
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clipkit.contracts import Batch
from clipkit.data.bad_samples import (
    BadRecord,
    BadSample,
    BadSampleCounter,
    BadTotals,
    check_lost,
)
from clipkit.data.mixture import Drawn, Mixture
from clipkit.data.samples import Sample, SampleReader, collate
from clipkit.data.sources import Source
from clipkit.errors import CheckpointError, ClipkitError, DataError, LostWorkerError

_MAX_ATTEMPTS = 64
_GRACE_S = 120
_TELL_EVERY = 8
# A worker hands its DataError over: raised there, it would arrive wrapped in a worker's traceback.
Delivered = tuple[Batch | DataError, list[BadRecord]]


class _Batches(Dataset[Delivered]):
    """Item t: this rank's rows of global batch t, and the bad samples met on the way."""

    def __init__(
        self,
        sources: Sequence[Source],
        mixture: Mixture,
        reader: SampleReader,
        tokenizer: Callable[[list[str]], Tensor],
        rows: slice,
        prefetch_steps: int,
    ) -> None:
        self.sources, self.mixture, self.reader = sources, mixture, reader
        self.tokenizer, self.rows, self.prefetch_steps = tokenizer, rows, prefetch_steps
        self._wanted, self._told = reader.wanted, -_TELL_EVERY

    def __getitem__(self, step: int) -> Delivered:
        bad: list[BadRecord] = []
        self._tell_ahead(step)
        drawn = self.mixture.rows(step, self.rows)
        try:
            samples = [self._sample(drawn, i, step, bad) for i in range(len(drawn.id))]
        except ClipkitError as error:
            return DataError(str(error)), bad
        return collate(samples, self.tokenizer), bad

    def _tell_ahead(self, step: int) -> None:
        """Every few steps each source hears which parts come next, so that it can fetch them."""
        if self.prefetch_steps and not 0 <= step - self._told < _TELL_EVERY:
            self._told = step
            upcoming = self.mixture.upcoming(step, self.rows, self.prefetch_steps)
            for source, parts in zip(self.sources, upcoming):
                source.prefetch(parts.tolist())

    def _sample(self, drawn: Drawn, i: int, step: int, bad: list[BadRecord]) -> Sample:
        """Row i of `drawn`, or its first usable substitute, augmented alike.

        The row alone counts as bad, however many of its substitutes fail.
        """
        row = self.rows.start + i
        seed = self.mixture.sample_seed(step, row)
        failed: BadRecord | None = None
        causes = set()
        place = tuple(int(x[i]) for x in (drawn.source, drawn.part, drawn.row, drawn.id))
        for attempt in range(_MAX_ATTEMPTS):
            if attempt:
                place = self.mixture.substitute(drawn, i, attempt)
            number, part, index, sample_id = place
            source, rng = self.sources[number], np.random.Generator(np.random.PCG64(seed))
            try:
                members = source.members(part, index, self._wanted, self.reader.max_bytes)
                key = source.key(part, index) if self.reader.hooks else ""
                sample = self.reader.read(members, sample_id, rng, key)
            except BadSample as error:
                causes.add(error.cause)
                if failed is None:
                    where = source.part_name(part), error.cause, source.key(part, index)
                    failed = BadRecord(*where, source.name, step, row, index)
                continue
            if failed is not None:
                instead = sample_id, source.part_name(part), source.key(part, index)
                bad.append(BadRecord(*failed[:7], *instead))
            return sample
        assert failed is not None
        bad.append(failed)
        raise DataError(
            f"a sample of {failed.shard} and all {_MAX_ATTEMPTS - 1} substitutes tried for it are "
            f"unusable ({', '.join(sorted(causes))}); mend the shards"
        )


class IndexedLoader:
    """Endless iterator of this rank's batches, seekable by `load_state_dict`.

    Args:
        sources: Where samples come from.
        mixture: Position -> source and sample.
        reader: Bytes -> Sample.
        tokenizer: Captions -> (n, L).
        rank, world_size: This rank's share of each global batch.
        workers: Loader processes; 0 decodes in this one.
        max_bad_fraction: See BadSampleCounter; also of what is known to be lost at the start.
        prefetch_steps: Sources hear this far ahead which parts come; 0: nothing is remote.

    Attributes:
        bad: Counts of samples that were replaced.
        lost: What the sources know to be missing.

    Raises:
        DataError: More than `max_bad_fraction` of the data is missing.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        mixture: Mixture,
        reader: SampleReader,
        tokenizer: Callable[[list[str]], Tensor],
        *,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        max_bad_fraction: float = 0.01,
        prefetch_steps: int = 0,
    ) -> None:
        local = mixture.batch // world_size
        rows = slice(rank * local, (rank + 1) * local)
        self.sources, self.mixture, self.workers, self.step = sources, mixture, workers, 0
        self.bad = BadSampleCounter(max_bad_fraction, world_size)
        held = sum(int(source.counts.sum()) for source in sources)
        lost = [item for source in sources for item in source.lost]
        self.lost = check_lost(lost, held, max_bad_fraction)
        self._batches = _Batches(sources, mixture, reader, tokenizer, rows, prefetch_steps)

    @property
    def batches_per_epoch(self) -> int | None:
        """Global batches per epoch; None for a mixture, whose sources have epochs of their own."""
        return self.mixture.batches_per_epoch

    @property
    def notes(self) -> list[str]:
        """What the sources have to say at the start."""
        notes = [note for source in self.sources for note in source.notes]
        return [*notes, f"missing: {self.lost.text()}"] if self.lost.total else notes

    def __iter__(self) -> Generator[Batch, None, None]:
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
        batches = start_workers(loader)
        try:
            for delivered in batches:
                batch = admit(delivered, self.bad, self.step)
                self.step += 1
                yield batch
        finally:  # not left to the garbage collector: it closes the queues first, and waits 10 s
            end_workers(batches)

    def state_dict(self) -> dict[str, Any]:
        """Position and all that gives it meaning; holds no world size and no worker count."""
        return {
            "mode": "indexed",
            "step": self.step,
            "order": self.mixture.parameters(),
            "manifest": [source.manifest for source in self.sources],
            "bad": self.bad.before.plus(self.bad.own).as_json(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the last trained batch.

        Raises:
            CheckpointError: Another data set or another order; names what differs.
        """
        check_state(state, self.state_dict(), [source.name for source in self.sources])
        self.step = int(state["step"])
        self.bad.before = BadTotals.from_json(state.get("bad"))


def admit(delivered: Delivered, counter: BadSampleCounter, step: int = -1) -> Batch:
    """Count a worker's bad samples and take its batch, that of `step`.

    Raises:
        DataError: The worker's own, or too many bad samples.
    """
    batch, bad = delivered
    if isinstance(batch, DataError):
        counter.note(bad, step)
        raise DataError(*batch.args)  # raised itself, it would hold its batch's loader in a cycle
    counter.add(batch.num_samples, bad, step)
    return batch


def check_state(state: dict[str, Any], own: dict[str, Any], sources: Sequence[str] = ()) -> None:
    """Compare a saved loader state with this run's.

    Args:
        state, own: As `state_dict` gives them.
        sources: Names of this run's sources, for the message.

    Raises:
        CheckpointError: Names what differs and the remedy.
    """
    remedy = "restore it, or start a new run from these weights (model.pretrained)"
    if state.get("mode") != own["mode"]:
        raise CheckpointError(
            f"the checkpoint was trained with data.mode={state.get('mode')}; keep it or start anew"
        )
    difference = _difference(own["order"], state.get("order"))
    if difference:
        name, now, then = difference
        raise CheckpointError(
            f"the data order differs from the checkpoint's: {name} is {now}, was {then}; {remedy}"
        )
    if state.get("manifest") != own["manifest"]:
        which, found = "data.train", _difference(own["manifest"], state.get("manifest"))
        if len(sources) > 1:
            number = int(found[0]) if found and found[0] else len(sources)
            which = f"source '{sources[number]}'" if number < len(sources) else "data.sources"
        raise CheckpointError(
            f"{which} is not the data set of the checkpoint (shards or samples differ); {remedy}"
        )


def _difference(now: Any, then: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """Dotted name of the first value below `now` that differs, and both; None: all are equal."""
    if isinstance(now, (list, tuple)) and isinstance(then, (list, tuple)):
        now, then = dict(enumerate(now)), dict(enumerate(then))
    if not (isinstance(now, dict) and isinstance(then, dict)):
        return None if now == then else (name, now, then)
    for key in [*now, *(k for k in then if k not in now)]:
        inner = f"{name}.{key}" if name else str(key)
        found = _difference(now.get(key), then.get(key), inner)
        if found:
            return found
    return None


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
    atexit.register(lambda: end_workers(reference()))
    return batches


def end_workers(batches: Iterator[Delivered] | None) -> None:
    """End the workers of a loader's iterator, if it has any and they are there."""
    shut_down = getattr(batches, "_shutdown_workers", None)
    if shut_down is not None:
        shut_down()


def worker_lost(error: BaseException) -> LostWorkerError | None:
    """What to tell of a worker that was killed, where `error` or its context comes of that.

    torch raises it out of a signal handler, wherever the main process is. It may come later than
    the failure to fetch a tensor that the worker has announced.
    """
    told = isinstance(error, RuntimeError) and "DataLoader worker" in str(error)
    frames = traceback.extract_tb(error.__traceback__)
    if told or any("resource_sharer" in frame.filename for frame in frames):
        return LostWorkerError(
            "a loader worker was killed (out of memory?); lower data.workers or give the job more "
            "memory, and go on with run.resume=auto"
        )
    earlier = error.__cause__ or error.__context__
    return None if earlier is None else worker_lost(earlier)
