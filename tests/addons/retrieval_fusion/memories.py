"""A memory in plain tensors, and the folder of neighbours that would be found in it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.retrieval.memory import Memory


def unit(*shape: int, seed: int = 0) -> Tensor:
    """Random unit rows."""
    g = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(shape, generator=g), dim=-1)


class PlainMemory(Memory):
    """Brute force over all rows."""

    def __init__(
        self, rows: int = 40, dim: int = 16, seed: int = 0, weights_hash: str = "w"
    ) -> None:
        self.sides = {"image": unit(rows, dim, seed=seed), "text": unit(rows, dim, seed=seed + 1)}
        self.dim, self.weights_hash, self.name = dim, weights_hash, f"plain-{rows}-{seed}"
        self.path = "plain"
        self.asked: list[tuple[str, int, float | None]] = []

    def __len__(self) -> int:
        return len(self.sides["image"])

    def search(
        self,
        queries: Tensor,
        side: str,
        k: int,
        *,
        exclude: np.ndarray | None = None,
        max_similarity: float | None = None,
        own_images: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        self.asked.append((side, k, max_similarity))
        scores = queries.float() @ self.sides[side].T  # (n, N)
        if exclude is not None:
            for row, gone in enumerate(exclude.tolist()):
                scores[row, gone] = -torch.inf
        if max_similarity is not None:
            scores[scores > max_similarity] = -torch.inf
        scores = F.pad(scores, (0, max(0, k - scores.shape[1])), value=-torch.inf)
        best, rows = scores.topk(k, dim=1)
        return best, rows.masked_fill(best == -torch.inf, -1)

    def features(self, side: str, rows: Tensor) -> Tensor:
        return self.sides[side][rows.clamp(min=0)] * (rows >= 0)[..., None]

    def table(self, columns: Sequence[str]) -> pyarrow.Table:
        raise NotImplementedError


def write_neighbours(
    folder: Path, memory: PlainMemory, counts: list[int], k: int = 4, **facts: Any
) -> Path:
    """Random rows, some missing: (sum of counts, k) for each side."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for side in ("image", "text"):
        rows = rng.integers(0, len(memory), (sum(counts), k))
        rows[1, 1:] = -1
        rows[2] = -1
        np.save(folder / f"{side}.npy", rows)
    known = {
        "k": k,
        "search": "uni",
        "weights_hash": memory.weights_hash,
        "memory": memory.name,
        "shards": [{"path": f"/here/{i}.tar", "rows": n} for i, n in enumerate(counts)],
    }
    (folder / "neighbours.json").write_text(json.dumps({**known, **facts}))
    return folder
