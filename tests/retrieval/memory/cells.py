"""Memories of a few rows, and the answers they must give, the slow way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clipkit.retrieval.memory import Memory
from clipkit.retrieval.scores import tile_scores
from data_tools.memory.build import IndexOptions, build_memory
from data_tools.memory.sources import open_sources
from tests.eval.test_embedding_folder import write_folder


def rows_of(n: int, seed: int, dim: int = 8) -> np.ndarray:
    """(n, dim) rows, some of them equal."""
    found = np.random.default_rng(seed).normal(size=(n, dim))
    found[n // 2 : n // 2 + n // 5] = found[: n // 5]
    return found


def write_memory(
    root: Path, n: int = 60, seed: int = 0, dim: int = 8, captions=None, **options
) -> Path:
    """A memory of n rows; built beside `root`, from embeddings in `root`-emb."""
    emb = root.with_name(root.name + "-emb")
    images, texts = rows_of(n, seed, dim), rows_of(n, seed + 100, dim)
    facts = {"shards": [{"path": f"/shards/{i}.tar", "samples": i + 1} for i in range(n)]}
    write_folder(emb, images, texts, captions, **facts)
    build_memory(open_sources([emb]), root, IndexOptions(**options))
    return root


def unit(n: int, dim: int = 8, seed: int = 7) -> Tensor:
    """(n, dim) queries."""
    rows = torch.from_numpy(np.random.default_rng(seed).normal(size=(n, dim)))
    return torch.nn.functional.normalize(rows, dim=1).float()


def all_features(memory: Memory, side: str) -> Tensor:
    """(N, D)."""
    return memory.features(side, torch.arange(len(memory)))


def slow_search(
    memory: Memory,
    queries: Tensor,
    side: str,
    k: int,
    exclude=None,
    max_similarity=None,
    own_images=None,
) -> tuple[Tensor, Tensor]:
    """All scores, one row after the other."""
    scores = tile_scores(queries, all_features(memory, side))
    near = scores if own_images is None else tile_scores(own_images, all_features(memory, "image"))
    held = memory.table(["has_caption"])["has_caption"].to_pylist()
    values, rows = torch.full((len(queries), k), float("-inf")), torch.full((len(queries), k), -1)
    for i in range(len(queries)):
        out = set() if exclude is None else set(np.atleast_1d(exclude[i]).tolist())
        allowed = [
            (-float(scores[i, j]), j)
            for j in range(len(memory))
            if (side == "image" or held[j])
            and j not in out
            and (max_similarity is None or float(near[i, j]) <= max_similarity)
        ]
        for place, (score, j) in enumerate(sorted(allowed)[:k]):
            values[i, place], rows[i, place] = -score, j
    return values, rows
