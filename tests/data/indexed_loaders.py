"""Small loaders in indexed mode, over shards or over a source whose faults are planted."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from clipkit.data.bad_samples import BadSample
from clipkit.data.loader import IndexedLoader
from clipkit.data.mixture import Mixture
from clipkit.data.order import Order
from clipkit.data.sources import ShardSource
from tests.fixtures_shards import number_tokenizer, sample_members, small_reader

B = 8
COUNTS = [13, 9, 20]


def make(shards, *, seed=0, reader=None, batch=B, streams=None, source=None, **options):
    source = source or ShardSource(shards)
    order = Order(source.counts, seed=seed, global_batch_size=batch, window=6, streams=streams)
    mixture = Mixture([order], seed=seed, global_batch_size=batch)
    return IndexedLoader([source], mixture, reader or small_reader(), number_tokenizer, **options)


def take(loader, count):
    return list(itertools.islice(iter(loader), count))


def joined(parts):
    """Global batches from the ranks' lists."""
    ids = [torch.cat([p.ids for p in step]).tolist() for step in zip(*parts)]
    images = [torch.cat([p.images["image"] for p in step]) for step in zip(*parts)]
    return ids, torch.stack(images)


class Planted:
    """A source whose samples are told, not read; remembers what it was asked."""

    notes, lost = ["planted"], []

    def __init__(self, counts, name="planted", bad=()):
        self.counts, self.name, self.bad = np.array(counts), name, bad
        self.manifest, self.asked, self.told = f"{name}{counts}", [], []

    def part_name(self, part):
        return f"{self.name}-{part}"

    def key(self, part, row):
        return f"{part}/{row}"

    def members(self, part, row, wanted, max_bytes):
        self.asked.append((part, row, wanted, max_bytes))
        if (part, row) in self.bad:
            raise BadSample("planted_fault")
        number = int(self.counts[:part].sum()) + row
        return dict(data for name, data in sample_members(number, 1) for data in [(name[7:], data)])

    def prefetch(self, parts):
        self.told.append(list(parts))
