"""Streaming mode: webdataset reads whole shards in sequence, be they remote or not indexed.

Deterministic for a given seed, world size and worker count: shards are permuted by (seed, pass),
dealt to ranks and workers (disjoint), and shuffled through a seeded buffer. Resume re-reads and
discards without decoding, so it is exact for the same layout and refused for another; use indexed
mode where shards are local.
"""

from __future__ import annotations

import hashlib
import random
import re
import tarfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import webdataset as wds
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from clipkit.contracts import Batch
from clipkit.data.bad_samples import BadSample, BadSampleCounter
from clipkit.data.loader import Delivered, admit, begin_worker, check_state, start_workers
from clipkit.data.samples import Sample, SampleReader, collate
from clipkit.data.shards import check_deal
from clipkit.errors import DataError


class _ShardStream(IterableDataset[Delivered]):
    """This rank's batches; worker w of n builds batches w, w + n, ..."""

    def __init__(
        self,
        shards: list[str],
        reader: SampleReader,
        tokenizer: Callable[[list[str]], Tensor],
        *,
        seed: int,
        rank: int,
        world_size: int,
        workers: int,
        local_batch: int,
        buffer: int,
        start: int,
    ) -> None:
        self.shards, self.reader, self.tokenizer = shards, reader, tokenizer
        self.seed, self.rank, self.world_size, self.workers = seed, rank, world_size, workers
        self.local_batch, self.buffer, self.start = local_batch, buffer, start

    def __iter__(self) -> Iterator[Delivered]:
        try:
            yield from self._batches()
        except DataError as error:
            yield error, []

    def _batches(self) -> Iterator[Delivered]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        number = self.start + (worker - self.start) % workers
        skipped = (number - worker) // workers * self.local_batch
        samples: list[Sample] = []
        bad: list[tuple[str, str]] = []
        owed = 0  # a stream has no index to substitute from: a neighbour stands in for a bad sample
        for position, raw in enumerate(
            self._raw(self.rank * workers + worker, self.world_size * workers)
        ):
            if position < skipped:
                continue
            rng = np.random.Generator(np.random.PCG64([self.seed, 2, self.rank, worker, position]))
            try:
                samples.extend([self._decode(raw, position, rng)] * (1 + owed))
                owed = 0
            except BadSample as error:
                bad.append((str(raw.get("__url__", "")), error.cause))
                owed += not samples
                if owed == self.local_batch:
                    raise DataError(
                        f"{owed} samples in a row are unusable, last cause {error.cause}"
                    ) from None
                samples.extend(samples[-1:])
            if len(samples) == self.local_batch:
                yield collate(samples, self.tokenizer), bad
                samples, bad = [], []

    def _decode(self, raw: dict[str, Any], position: int, rng: np.random.Generator) -> Sample:
        members = {k: v for k, v in raw.items() if k in self.reader.wanted and isinstance(v, bytes)}
        key = f"{raw.get('__url__', '')}\0{raw['__key__']}"
        return self.reader.read(members, _stable_id(key), rng)

    def _raw(self, part: int, parts: int) -> Iterator[dict[str, Any]]:
        """Endless raw samples of this worker's shards, reshuffled at each pass."""
        number = 0
        while True:
            generator = random.Random(f"{self.seed}:{number}")
            shards = list(self.shards)
            generator.shuffle(shards)
            mine = shards[part::parts]
            pipeline = wds.DataPipeline(
                wds.SimpleShardList(mine),
                wds.tarfile_to_samples(select_files=self._wanted_file),
                wds.shuffle(
                    self.buffer,
                    initial=self.buffer,
                    rng=random.Random(f"{self.seed}:{number}:{part}"),
                ),
            )
            found = False
            try:
                for raw in pipeline:
                    found = True
                    yield raw
            except (tarfile.TarError, OSError, EOFError, ValueError) as error:
                reason = " ".join(str(error).split())[:300]
                raise DataError(f"a streamed shard cannot be read: {reason}; replace it") from None
            if not found:
                raise DataError(
                    f"no sample in {mine[0] if mine else 'an empty shard list'}; check the shards"
                )
            number += 1

    def _wanted_file(self, name: str) -> bool:
        return name.rpartition("/")[2].partition(".")[2].lower() in self.reader.wanted


class StreamingLoader:
    """Endless iterator of this rank's batches from streamed shards.

    Args:
        shards: Paths or URLs.
        reader: Bytes -> Sample.
        tokenizer: Captions -> (n, L).
        seed, rank, world_size, workers: Fix the order.
        global_batch_size: Over all ranks.
        buffer: Samples in the shuffle buffer of each worker.
        max_bad_fraction: See BadSampleCounter.

    Raises:
        DataError: Fewer shards than ranks x workers; some worker would never deliver.
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
    ) -> None:
        check_deal(len(shards), world_size, workers)
        self.step, self.workers = 0, workers
        self.bad = BadSampleCounter(max_bad_fraction)
        self._shards, self._reader, self._tokenizer = shards, reader, tokenizer
        self._order = {
            "seed": seed,
            "world_size": world_size,
            "workers": workers,
            "global_batch_size": global_batch_size,
            "shuffle_buffer": buffer,
        }
        self._rank = rank

    @property
    def batches_per_epoch(self) -> int | None:
        """Unknown: a stream has no index."""
        return None

    def __iter__(self) -> Iterator[Batch]:
        """Batches from the current position on."""
        o = self._order
        stream = _ShardStream(
            self._shards,
            self._reader,
            self._tokenizer,
            seed=o["seed"],
            rank=self._rank,
            world_size=o["world_size"],
            workers=o["workers"],
            local_batch=o["global_batch_size"] // o["world_size"],
            buffer=o["shuffle_buffer"],
            start=self.step,
        )
        loader = DataLoader(
            stream,
            batch_size=None,
            num_workers=self.workers,
            worker_init_fn=begin_worker,
            prefetch_factor=2 if self.workers else None,
            pin_memory=torch.cuda.is_available(),
        )
        batches: Iterator[Delivered] = start_workers(loader)
        if self.workers:  # dealt round-robin from worker 0; begin where the run stopped
            batches = _rotated(batches, self.step % self.workers, self.workers)
        for delivered in batches:
            batch = admit(delivered, self.bad)
            self.step += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Position and layout; a stream's order depends on both."""
        return {
            "mode": "streaming",
            "step": self.step,
            "order": dict(self._order),
            "manifest": shard_list_hash(self._shards),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the last trained batch.

        Raises:
            CheckpointError: Another layout or shard list.
        """
        check_state(state, self.state_dict())
        self.step = int(state["step"])


def _rotated(batches: Iterator[Delivered], first: int, workers: int) -> Iterator[Delivered]:
    """Reorder a round-robin of `workers` that starts at 0 so that it starts at worker `first`."""
    while True:
        group = [next(batches) for _ in range(workers)]
        yield from group[first:] + group[:first]


def shard_list_hash(shards: list[str]) -> str:
    """Identity of a shard list; no credentials, which may change, and none in the clear."""
    plain = sorted(re.sub(r"(?<=://)[^/@]*@", "", shard).partition("?")[0] for shard in shards)
    return hashlib.sha256("\n".join(plain).encode()).hexdigest()


def _stable_id(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1
