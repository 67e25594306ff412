"""Neighbours of training samples, found ahead: a folder of `clipkit-data neighbours`.

    neighbours.json        k, search, weights_hash of the memory and its rows, shards with counts
    image.npy, text.npy    (N, k) int64, memory rows of each sample's image and caption; -1: none

Shapes: N samples, k neighbours of each.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipkit.addons.retrieval_fusion.head import SIDES, FusionSettings
from clipkit.errors import DataError
from clipkit.retrieval.memory import Memory

FACTS = "neighbours.json"


class Neighbours:
    """An opened folder; rows are memory-mapped when first read, in each process anew.

    Args:
        folder: Of `clipkit-data neighbours`.

    Raises:
        DataError: No such folder, or a damaged one.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / FACTS
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            self.k, self.search = int(facts["k"]), str(facts["search"])
            self.weights_hash, self.memory = str(facts["weights_hash"]), str(facts["memory"])
            self.shards = [(str(s["path"]), int(s["rows"])) for s in facts["shards"]]
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read ({error.strerror}); write it with clipkit-data neighbours"
            ) from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"{path}: is damaged ({error!r}); write it anew") from None
        self._rows: dict[str, np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rows": {}}

    def rows(self, side: str, sample_id: int, k: int) -> np.ndarray:
        """(k,) int64, the sample's nearest rows; -1: none.

        Raises:
            DataError: The file is missing, damaged or of another size.
        """
        if side not in self._rows:
            self._rows[side] = self._opened(side)
        return np.array(self._rows[side][sample_id, :k])

    def _opened(self, side: str) -> np.ndarray:
        path, shape = self.folder / f"{side}.npy", (sum(rows for _, rows in self.shards), self.k)
        try:
            found = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path}: cannot be read: {str(error)[:200]}") from None
        if found.shape != shape or found.dtype != np.int64:
            raise DataError(f"{path}: holds {found.dtype} {found.shape}, not int64 {shape}")
        return found

    def check(self, settings: FusionSettings, memory: Memory) -> None:
        """See that they were found in this memory, as the head wants them, and enough of them.

        Raises:
            DataError: Names what differs and the remedy.
        """
        if self.weights_hash != memory.weights_hash or self.memory != memory.name:
            raise DataError(
                f"{self.folder}: neighbours of another memory ({self.memory}), not of "
                f"{memory.name}; run clipkit-data neighbours with this one"
            )
        if self.search != settings.search:
            raise DataError(
                f"{self.folder}: found by search={self.search}, the add-on has "
                f"search={settings.search}; set it, or run clipkit-data neighbours again"
            )
        if self.k < settings.k:
            raise DataError(
                f"{self.folder}: holds {self.k} neighbours of a sample, k is {settings.k}; lower "
                f"k, or run clipkit-data neighbours --k {settings.k}"
            )
        for side in SIDES:
            self._opened(side)

    def check_shards(self, shards: Sequence[tuple[str, int]]) -> None:
        """See that samples are numbered as in these shards; told by file names and counts.

        Args:
            shards: (path or URL, samples) in the order of training.

        Raises:
            DataError: Names the first difference.
        """
        own, given = ([(p.rpartition("/")[2], n) for p, n in s] for s in (self.shards, shards))
        if own == given:
            return
        what = f"they are of {len(own)} shards, data.train has {len(given)}"
        for number, (mine, other) in enumerate(zip(own, given)):
            if mine != other:
                what = "shard {} is {} with {} samples, in data.train {} with {}".format(
                    number, *mine, *other
                )
                break
        raise DataError(
            f"{self.folder}: neighbours of other data: {what}; run clipkit-data neighbours on "
            f"embeddings of the shards of data.train, in their order"
        )
