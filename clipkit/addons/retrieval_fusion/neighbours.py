"""Neighbours of training samples, found ahead: a folder of `clipkit-data neighbours`.

    neighbours.json        k, search, weights_hash of the memory and its rows, shards
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
from clipkit.data.numbering import Shard, difference, read_shards
from clipkit.errors import DataError
from clipkit.retrieval.memory import Memory

FACTS = "neighbours.json"
_BLOCK = 1 << 16  # rows that are checked at once


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
            self.shards = read_shards(facts["shards"])
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read ({error.strerror}); write it with clipkit-data neighbours"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
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
        path, shape = self.folder / f"{side}.npy", (sum(s.samples for s in self.shards), self.k)
        try:
            found = np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # on hostile headers numpy's parser raises a dozen kinds
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
            self._check_rows(side, len(memory))

    def _check_rows(self, side: str, most: int) -> None:
        found = self._opened(side)
        for start in range(0, len(found), _BLOCK):
            block = found[start : start + _BLOCK]
            wrong = block[(block < -1) | (block >= most)]
            if len(wrong):
                raise DataError(
                    f"{self.folder / f'{side}.npy'}: names row {wrong[0]}, the memory has rows 0 "
                    f"to {most - 1} (-1: none); run clipkit-data neighbours again"
                )

    def check_shards(self, shards: Sequence[Shard]) -> None:
        """See that samples are numbered as in these shards of the run, in order.

        Raises:
            DataError: Names the first difference.
        """
        what = difference(self.shards, shards)
        if what:
            raise DataError(
                f"{self.folder}: neighbours of other data: {what}; run clipkit-data neighbours on "
                f"embeddings of the shards of data.train, in their order"
            )
