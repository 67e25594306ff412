"""Several memories behave as the one of all their rows, bit for bit."""

from __future__ import annotations

import importlib.util
import json
import pickle

import numpy as np
import pytest
import torch

from clipkit.errors import CheckpointError, ConfigError, DataError
from clipkit.retrieval.memory import FolderMemory, ShardedMemory
from data_tools.memory.build import build_memory
from data_tools.memory.sources import open_sources
from tests.retrieval.memory.cells import all_features, unit, write_memory

SIZES = (170, 3, 200)
CAPTIONS = [["" if i % 7 == n else f"c{i}" for i in range(size)] for n, size in enumerate(SIZES)]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Three memories, the third with rows of the first, and one of all rows."""
    root = tmp_path_factory.mktemp("sharded")
    for number, (size, seed) in enumerate(zip(SIZES, (0, 1, 0))):
        write_memory(root / f"m{number}", size, seed, captions=CAPTIONS[number])
    embeddings = [root / f"m{number}-emb" for number in range(3)]
    build_memory(open_sources(embeddings), root / "whole")
    return root


def opened(paths, engine="process"):
    parts = [FolderMemory(paths / f"m{number}") for number in range(3)]
    return ShardedMemory(parts, engine=engine), FolderMemory(paths / "whole")


def check_same(sharded, whole):
    queries, images = unit(20), all_features(whole, "image")
    assert len(sharded) == len(whole) == sum(SIZES)
    for side in ("image", "text"):
        for k in (1, 6, 400):
            found, expected = sharded.search(queries, side, k), whole.search(queries, side, k)
            assert all(torch.equal(a, b) for a, b in zip(found, expected))
        options = {
            "exclude": np.stack([np.arange(len(whole)), np.arange(len(whole))[::-1]], axis=1),
            "max_similarity": 0.9,
            "own_images": images,
        }
        texts = all_features(whole, "text") + 0.01
        found, expected = (m.search(texts, side, 6, **options) for m in (sharded, whole))
        assert all(torch.equal(a, b) for a, b in zip(found, expected))


def test_search_equals_that_of_one_memory(paths):
    check_same(*opened(paths))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="clipkit[ray] is not installed")
def test_ray_searches_the_same(paths):
    import ray

    try:
        check_same(*opened(paths, "ray"))
        sharded, _ = opened(paths, "ray")
        sharded.parts[1].name = "another"
        with pytest.raises(DataError, match="m1: is another memory on this node"):
            sharded.search(unit(2), "image", 1)
    finally:
        ray.shutdown()


def test_features_and_table_follow_the_rows(paths):
    sharded, whole = opened(paths)
    rows = torch.tensor([[0, 169, 170], [172, 173, 372], [-1, 5, -1]])
    for side in ("image", "text"):
        assert torch.equal(sharded.features(side, rows), whole.features(side, rows))
    assert sharded.table(["key", "caption"]).equals(whole.table(["key", "caption"]))
    assert (sharded.dim, sharded.weights_hash) == (8, "w")


def test_pickled_as_paths_and_named_by_its_parts(paths):
    sharded, _ = opened(paths)
    data = pickle.dumps(sharded)
    other = pickle.loads(data)
    queries = unit(3)
    assert len(data) < 1000 and other.name == sharded.name
    assert torch.equal(other.search(queries, "image", 4)[1], sharded.search(queries, "image", 4)[1])
    assert ShardedMemory(sharded.parts[::-1]).name != sharded.name


def test_other_weights_and_engines_are_refused(paths, tmp_path):
    write_memory(tmp_path / "other", 9)
    facts = json.loads((tmp_path / "other" / "memory.json").read_text())
    (tmp_path / "other" / "memory.json").write_text(json.dumps({**facts, "weights_hash": "x"}))
    parts = [FolderMemory(paths / "m0"), FolderMemory(tmp_path / "other")]
    with pytest.raises(CheckpointError, match="m0 and .*other were built with different weights"):
        ShardedMemory(parts)
    with pytest.raises(ConfigError, match="engine 'spark' does not exist"):
        ShardedMemory(parts[:1], engine="spark")
