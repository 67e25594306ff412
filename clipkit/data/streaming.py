"""Streaming mode: whole shards are read in sequence, be they remote or not indexed.

Deterministic for a given seed, world size and worker count: shards are permuted by (seed, virtual
epoch, pass), dealt to ranks and workers (disjoint), and shuffled through a seeded buffer. A pass
ends when a worker's share is read; the next one deals all shards anew.

Resume re-reads and discards without decoding, so it is exact for the same layout:

* Without virtual epochs it re-reads all the run has read, and another layout is refused.
* With `virtual_epoch` (samples over all ranks) each virtual epoch begins with fresh lists of
  shards. Resume re-reads at most the samples of one, at its start nothing. With another world size
  or worker count the run goes on at the next virtual epoch, and `notes` says so. Let each worker
  read many shards per virtual epoch: it starts at their beginnings, and what it does not reach
  waits for a later draw.

A stream has no index to substitute from: a neighbour in the batch stands in for an unusable sample.
What is lost of a damaged shard is counted ("broken_shard", "rest_of_shard_lost"), and the stream
goes on with the next one. A tar cut exactly between two samples cannot be told from a whole one.
Use indexed mode where shards are local.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import webdataset as wds
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from clipkit.contracts import Batch
from clipkit.data.bad_samples import BadRecord, BadSample, BadSampleCounter, BadTotals
from clipkit.data.loader import Delivered, admit, begin_worker, check_state, start_workers
from clipkit.data.samples import Sample, SampleReader, collate
from clipkit.data.shard_store import ShardStore, filesystem, plain_url
from clipkit.data.shards import check_deal, is_url
from clipkit.data.stream_shards import read_shard
from clipkit.errors import ClipkitError, ConfigError, DataError

_MAX_BARREN = 16  # shards without a sample, one after another, that end a run
_LAYOUT = ("world_size", "workers")


@dataclass
class _ShardStream(IterableDataset[Delivered]):
    """This rank's batches from number `start` on; worker w of n builds those with number % n = w.

    Attributes:
        epoch_batches: Global batches per virtual epoch; None: the first one never ends.
    """

    shards: list[str]
    reader: SampleReader
    tokenizer: Callable[[list[str]], Tensor]
    seed: int
    rank: int
    world_size: int
    local_batch: int
    buffer: int
    start: int
    epoch_batches: int | None
    store: ShardStore | None
    allow_pipe: bool

    def __iter__(self) -> Iterator[Delivered]:
        try:
            yield from self._batches()
        except ClipkitError as error:
            yield DataError(str(error)), []

    def _batches(self) -> Iterator[Delivered]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        number = self.start + (worker - self.start) % workers
        while True:
            epoch = number // self.epoch_batches if self.epoch_batches else 0
            first = epoch * (self.epoch_batches or 0)
            done = (number - first) // workers
            with closing(self._epoch(epoch, worker, workers, done * self.local_batch)) as batches:
                for batch in batches:
                    yield batch
                    number += workers
                    if self.epoch_batches and number // self.epoch_batches > epoch:
                        break

    def _epoch(
        self, epoch: int, worker: int, workers: int, skipped: int
    ) -> Generator[Delivered, None, None]:
        """Endless batches of one virtual epoch, after `skipped` samples."""
        samples: list[Sample] = []
        bad: list[BadRecord] = []
        owed = 0  # slots of bad samples at the head of a batch, which the first good one fills
        raws = self._raw(epoch, self.rank * workers + worker, self.world_size * workers, bad)
        for position, raw in enumerate(raws):
            if position < skipped:
                bad.clear()  # counted when it was first read
                continue
            keys = [self.seed, 2, epoch, self.rank, worker, position]
            try:
                sample = self._decode(raw, np.random.Generator(np.random.PCG64(keys)))
                samples.extend([sample] * (1 + owed))
                owed = 0
            except BadSample as error:
                stand_in = samples[-1].id if samples else -1
                key = str(raw["__key__"])
                bad.append(BadRecord(raw["__url__"], error.cause, key, substitute=stand_in))
                owed += not samples
                if owed == self.local_batch:
                    raise DataError(
                        f"{owed} samples in a row are unusable, last cause {error.cause}"
                    ) from None
                samples.extend(samples[-1:])
            if len(samples) == self.local_batch:
                yield collate(samples, self.tokenizer), bad[:]
                samples = []
                bad.clear()

    def _decode(self, raw: dict[str, Any], rng: np.random.Generator) -> Sample:
        key = str(raw["__key__"])
        members = {k: v for k, v in raw.items() if not k.startswith("__")}
        if None in members.values():
            raise BadSample("too_many_bytes")
        return self.reader.read(members, _stable_id(f"{raw['__url__']}\0{key}"), rng, key)

    def _raw(
        self, epoch: int, part: int, parts: int, bad: list[BadRecord]
    ) -> Iterator[dict[str, Any]]:
        """Endless raw samples of this worker's shards, dealt anew at each pass."""
        barren: set[str] = set()
        number = 0
        while True:
            shards = list(self.shards)
            random.Random(f"{self.seed}:{epoch}:{number}").shuffle(shards)
            order = random.Random(f"{self.seed}:{epoch}:{number}:{part}")
            shuffle = wds.shuffle(self.buffer, initial=self.buffer, rng=order)
            yield from shuffle(self._pass(shards[part::parts], bad, barren))
            number += 1

    def _pass(
        self, shards: list[str], bad: list[BadRecord], barren: set[str]
    ) -> Iterator[dict[str, Any]]:
        for shard, following in zip(shards, [*shards[1:], None]):
            if self.store is not None and following is not None:
                self.store.prefetch([following])
            name = plain_url(shard)
            barren.add(shard)  # not its name, which two may share
            for raw in read_shard(
                shard,
                self.reader.wanted,
                self.reader.max_bytes,
                lambda cause, name=name: bad.append(BadRecord(name, cause)),  # type: ignore[misc]
                store=self.store,
                allow_pipe=self.allow_pipe,
            ):
                barren.clear()
                yield raw
            if len(barren) >= min(_MAX_BARREN, len(self.shards)):
                names = {plain_url(shard) for shard in barren}
                causes = ", ".join(sorted({b.cause for b in bad if b.shard in names}))
                raise DataError(
                    f"no sample in {len(barren)} shards one after another ({causes or 'empty'}), "
                    f"last in '{name}'; check the shards and their paths"
                )


class StreamingLoader:
    """Endless iterator of this rank's batches from streamed shards.

    Args:
        shards: Paths or URLs; the order of the list does not matter.
        reader: Bytes -> Sample.
        tokenizer: Captions -> (n, L).
        seed, rank, world_size, workers: Fix the order.
        global_batch_size: Over all ranks.
        buffer: Samples in the shuffle buffer of each worker.
        max_bad_fraction: See BadSampleCounter.
        virtual_epoch: Samples over all ranks, rounded down to whole global batches; None: none.
        store: Keeps copies of remote shards; without one they are streamed at every pass.
        allow_pipe: Run `pipe:` commands of the shard list.

    Attributes:
        notes: What the user should know about this run's order; grows on `load_state_dict`.

    Raises:
        DataError: Fewer shards than ranks x workers; some worker would never deliver. Or a pipe.
        ConfigError: A virtual epoch smaller than a batch; a remote protocol that is not installed.
    """

    def __init__(
        self,
        shards: list[str],
        reader: SampleReader,
        tokenizer: Callable[[list[str]], Tensor],
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        global_batch_size: int = 256,
        buffer: int = 2000,
        max_bad_fraction: float = 0.01,
        virtual_epoch: int | None = None,
        store: ShardStore | None = None,
        allow_pipe: bool = False,
    ) -> None:
        check_deal(len(shards), world_size, workers)
        _check_protocols(shards, allow_pipe)
        if virtual_epoch is not None and virtual_epoch < global_batch_size:
            raise ConfigError(
                f"a virtual epoch of {virtual_epoch} samples is smaller than one global batch "
                f"of {global_batch_size}; enlarge it"
            )
        self.step, self.workers, self.notes = 0, workers, list[str]()
        self.bad = BadSampleCounter(max_bad_fraction, world_size)
        self._ahead = 0  # batches left out where another layout began at a virtual epoch
        self._shards = sorted(shards, key=plain_url)
        self._order: dict[str, Any] = {
            "seed": seed,
            "world_size": world_size,
            "workers": workers,
            "global_batch_size": global_batch_size,
            "shuffle_buffer": buffer,
            "virtual_epoch": virtual_epoch,
        }
        self._stream = _ShardStream(
            self._shards,
            reader,
            tokenizer,
            seed=seed,
            rank=rank,
            world_size=world_size,
            local_batch=global_batch_size // world_size,
            buffer=buffer,
            start=0,
            epoch_batches=virtual_epoch and virtual_epoch // global_batch_size,
            store=store,
            allow_pipe=allow_pipe,
        )

    @property
    def batches_per_epoch(self) -> int | None:
        """Global batches of a virtual epoch; without, unknown: a stream has no index."""
        return self._stream.epoch_batches

    def __iter__(self) -> Generator[Batch, None, None]:
        """Batches from the current position on."""
        self._stream.start = start = self.step + self._ahead
        loader = DataLoader(
            self._stream,
            batch_size=None,
            num_workers=self.workers,
            worker_init_fn=begin_worker,
            prefetch_factor=2 if self.workers else None,
            pin_memory=torch.cuda.is_available(),
        )
        started = start_workers(loader)
        batches: Iterator[Delivered] = started
        if self.workers:  # dealt round-robin from worker 0; begin where the run stopped
            batches = _rotated(started, start % self.workers, self.workers)
        try:
            for delivered in batches:
                batch = admit(delivered, self.bad, self.step)
                self.step += 1
                yield batch
        finally:
            # Not left to the garbage collector: it closes the queues first, and the workers stay.
            if self.workers:
                started._shutdown_workers()  # type: ignore[attr-defined]
                for worker in started._workers:  # type: ignore[attr-defined]
                    if worker.is_alive():
                        worker.kill()

    def state_dict(self) -> dict[str, Any]:
        """Position and layout; a stream's order depends on both."""
        return {
            "mode": "streaming",
            "step": self.step,
            "ahead": self._ahead,
            "order": dict(self._order),
            "manifest": shard_list_hash(self._shards),
            "bad": self.bad.before.plus(self.bad.own).as_json(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the last trained batch, or in another layout at the next virtual epoch.

        Raises:
            CheckpointError: Another order or shard list; without virtual epochs, another layout.
        """
        own, was = self.state_dict(), dict(state.get("order", {}))
        moved = [f"{k} {was.get(k)} -> {own['order'][k]}" for k in _LAYOUT]
        moved = [m for m, k in zip(moved, _LAYOUT) if was.get(k) != own["order"][k]]
        if self._stream.epoch_batches and moved:
            was.update({k: own["order"][k] for k in _LAYOUT})
        check_state({**state, "order": was}, own)
        self.step, self._ahead = int(state["step"]), int(state.get("ahead", 0))
        self.bad.before = BadTotals.from_json(state.get("bad"))
        if not moved or not self._stream.epoch_batches:
            return
        left = -(self.step + self._ahead) % self._stream.epoch_batches
        self._ahead += left
        self.notes.append(
            f"streaming with another layout ({', '.join(moved)}): goes on at virtual epoch "
            f"{(self.step + self._ahead) // self._stream.epoch_batches}, "
            f"{left} batches of the one before are left out"
        )


def _check_protocols(shards: list[str], allow_pipe: bool) -> None:
    """Before any worker starts: what all of a protocol's shards would meet."""
    pipe = next((s for s in shards if s.lower().startswith("pipe:")), None)
    if pipe and not allow_pipe:
        raise DataError(f"'{plain_url(pipe)}' would run a shell command; set data.allow_pipe=true")
    for url in {s.partition("://")[0]: s for s in shards if is_url(s) and "://" in s}.values():
        if not url.lower().startswith("pipe:"):
            filesystem(url)


def _rotated(batches: Iterator[Delivered], first: int, workers: int) -> Iterator[Delivered]:
    """Reorder a round-robin of `workers` that starts at 0 so that it starts at worker `first`."""
    while True:
        group = [next(batches) for _ in range(workers)]
        yield from group[first:] + group[:first]


def shard_list_hash(shards: list[str]) -> str:
    """Identity of a shard list; no credentials, which may change, and none in the clear."""
    plain = sorted(plain_url(shard) for shard in shards)
    return hashlib.sha256("\n".join(plain).encode()).hexdigest()


def _stable_id(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1
