"""Memory: features of image-text pairs that queries are answered from. No model here.

Lives here: `base.py` (what a memory answers), `folder.py` (one folder of `clipkit-data memory
build`), `stored_side.py` (the exact search of one of its sides), `sharded.py` (several folders as
one, also by Ray). faiss and ray are imported inside functions.
May import what `retrieval` may.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from clipkit.errors import DataError
from clipkit.retrieval.memory.base import SIDES, Memory
from clipkit.retrieval.memory.folder import FolderMemory
from clipkit.retrieval.memory.sharded import ShardedMemory

__all__ = ["SIDES", "FolderMemory", "Memory", "ShardedMemory", "open_memory"]

Paths = str | Path | Sequence[str | Path]


def open_memory(path: Paths, weights_hash: str | None = None, *, engine: str = "process") -> Memory:
    """Open a memory, or several as one.

    Args:
        path: A folder, a glob of folders (in the order of their names), or a list of either.
        weights_hash: Of the model whose features are to be compared; None: any.
        engine: Of several: "process" or "ray", see `ShardedMemory`.

    Raises:
        DataError: No memory there, or a damaged one.
        CheckpointError: One was built with other weights.
        ConfigError: No such engine, or ray is not installed.
    """
    given = [path] if isinstance(path, (str, Path)) else list(path)
    places: list[str] = []
    for one in map(str, given):
        found = sorted(glob.glob(one)) if glob.has_magic(one) and not os.path.isdir(one) else [one]
        places += found or [one]
    if not places:
        raise DataError("the list of memories is empty; name a folder of clipkit-data memory build")
    parts = [FolderMemory(place, weights_hash) for place in places]
    return parts[0] if len(parts) == 1 else ShardedMemory(parts, engine=engine)
