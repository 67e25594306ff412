"""Several memories behind the interface of one: searched one by one or by Ray, merged exactly.

Shapes: n queries, k neighbours, D embed dim.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow
import torch
from torch import Tensor

from clipkit.dist.ray import start
from clipkit.errors import CheckpointError, ConfigError, DataError
from clipkit.retrieval.memory.base import Memory
from clipkit.retrieval.memory.folder import FolderMemory

Found = tuple[np.ndarray, np.ndarray]
ENGINES = ("process", "ray")


class ShardedMemory(Memory):
    """Rows of the first memory, then those of the second, and so on.

    Args:
        parts: The memories, all of the same weights.
        engine: "process" searches them one by one. "ray" (an extra) gives each to a task: on this
            machine, or on the cluster that RAY_ADDRESS names, whose nodes must reach the folders
            under the same paths.

    Raises:
        CheckpointError: The memories were built with different weights.
        ConfigError: No such engine, or ray is not installed.
    """

    def __init__(self, parts: Sequence[FolderMemory], *, engine: str = "process") -> None:
        if engine not in ENGINES:
            raise ConfigError(f"engine '{engine}' does not exist; choose {' or '.join(ENGINES)}")
        if engine == "ray" and importlib.util.find_spec("ray") is None:
            raise ConfigError("engine 'ray' needs ray: pip install 'clipkit[ray]'")
        self.parts, self.engine, first = list(parts), engine, parts[0]
        for part in self.parts:
            if (part.weights_hash, part.dim) != (first.weights_hash, first.dim):
                raise CheckpointError(
                    f"{first.path} and {part.path} were built with different weights; build all "
                    f"memories with one checkpoint"
                )
        self.dim, self.weights_hash = first.dim, first.weights_hash
        self.path = ", ".join(part.path for part in self.parts)
        self.name = hashlib.sha256(" ".join(p.name for p in self.parts).encode()).hexdigest()[:16]
        self._first = np.cumsum([0, *map(len, self.parts)])  # first row of each

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _restored, ([part.path for part in self.parts], self.engine)

    def __len__(self) -> int:
        return int(self._first[-1])

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
        """See `Memory.search`."""
        own = None if own_images is None else own_images.detach().cpu().numpy()
        shared = (queries.detach().cpu().numpy(), side, k, max_similarity, own)
        if self.engine == "ray":
            found = self._by_ray(exclude, shared)
        else:
            numbers = range(len(self.parts))
            found = [_search(self.parts[i], self._inside(exclude, i), shared) for i in numbers]
        scores, rows = self._merged(found, k)
        return scores.to(queries.device), rows.to(queries.device)

    def _inside(self, rows: np.ndarray | None, number: int) -> np.ndarray | None:
        """Rows as a part numbers them, -1 for those of others."""
        if rows is None:
            return None
        own = np.asarray(rows) - self._first[number]
        return np.where((own >= 0) & (own < len(self.parts[number])), own, -1)

    def _by_ray(self, exclude: np.ndarray | None, shared: tuple[Any, ...]) -> list[Found]:
        import ray

        start()
        held = ray.put(shared)
        remote = ray.remote(_search_path)
        try:
            found: list[Found] = ray.get(
                [
                    remote.remote(
                        os.path.abspath(part.path), part.name, self._inside(exclude, number), held
                    )
                    for number, part in enumerate(self.parts)
                ]
            )
        except ray.exceptions.RayTaskError as error:
            raise DataError(f"a Ray task: {error.cause}") from None
        except ray.exceptions.RayError as error:
            line = str(error).splitlines()[0]
            raise DataError(f"a Ray task that searched a memory died: {line}") from None
        return found

    def _merged(self, found: Sequence[Found], k: int) -> tuple[Tensor, Tensor]:
        """The k best of each query, by falling score and rising row."""
        scores = torch.from_numpy(np.concatenate([s for s, _ in found], axis=1))
        moved = [np.where(r >= 0, r + first, -1) for (_, r), first in zip(found, self._first)]
        rows = torch.from_numpy(np.concatenate(moved, axis=1))
        # of equal scores those of earlier parts stand first, and there the lowest rows
        order = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
        return scores.gather(1, order), rows.gather(1, order)

    def features(self, side: str, rows: Tensor) -> Tensor:
        """See `Memory.features`."""
        out = torch.zeros(*rows.shape, self.dim, device=rows.device)
        for part, first, stop in zip(self.parts, self._first, self._first[1:]):
            inside = (rows >= int(first)) & (rows < int(stop))
            out[inside] = part.features(side, rows[inside] - int(first))
        return out

    def table(self, columns: Sequence[str]) -> pyarrow.Table:
        """See `Memory.table`."""
        return pyarrow.concat_tables([part.table(columns) for part in self.parts])


def _restored(paths: list[str], engine: str) -> ShardedMemory:
    return ShardedMemory([FolderMemory(path) for path in paths], engine=engine)


@lru_cache(64)
def _opened(path: str, name: str) -> FolderMemory:
    """A worker serves many searches."""
    memory = FolderMemory(path)
    if memory.name != name:
        raise DataError(f"{path}: is another memory on this node, or was replaced; start anew")
    return memory


def _search_path(
    path: str, name: str, exclude: np.ndarray | None, shared: tuple[Any, ...]
) -> Found:
    return _search(_opened(path, name), exclude, shared)


def _search(part: FolderMemory, exclude: np.ndarray | None, shared: tuple[Any, ...]) -> Found:
    queries, side, k, max_similarity, own = shared
    scores, rows = part.search(
        torch.from_numpy(np.array(queries)),  # what Ray hands over is not writable
        side,
        k,
        exclude=exclude,
        max_similarity=max_similarity,
        own_images=None if own is None else torch.from_numpy(np.array(own)),
    )
    return scores.numpy(), rows.numpy()
