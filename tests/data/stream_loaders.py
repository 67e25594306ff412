"""Small streaming loaders, and what their batches hold."""

import itertools

import torch

from clipkit.data.streaming import StreamingLoader
from tests.fixtures_shards import number_tokenizer, small_reader


def make(shards, **options):
    options = {"global_batch_size": 4, "buffer": 5, "seed": 1, **options}
    return StreamingLoader(shards, small_reader(), number_tokenizer, **options)


def take(loader, count):
    return list(itertools.islice(iter(loader), count))


def captions(batches):
    return [b.texts["text"].flatten().tolist() for b in batches]


def same(left, right):
    assert captions(left) == captions(right)
    for a, b in zip(left, right):
        assert torch.equal(a.images["image"], b.images["image"])
