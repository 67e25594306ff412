"""A memory as a folder, written by `clipkit-data memory build`, mapped and never read whole.

    MEM/memory.json   format, weights_hash, checkpoint, dim, rows, name, and of each side its rows,
                      kind of index ("flat" or "ivf_sq8"), nlist, nprobe and measured recall;
                      bytes and sha256 of each file
    MEM/<side>.npy    (N, D) float16; text.npy has zeros where a row has no caption
    MEM/<side>.faiss  index of <side>.npy; that of the texts holds the rows with a caption
    MEM/rows.parquet  shard, row, key, caption, has_caption; row for row

Both text files are missing where no row has a caption. Shapes: N rows, D embed dim.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import torch
from torch import Tensor

from clipkit.errors import CheckpointError, DataError
from clipkit.retrieval.memory.base import SIDES, Memory
from clipkit.retrieval.memory.stored_side import Keep, StoredSide

FORMAT = "clipkit-memory-1"
FACTS = "memory.json"
TABLE = "rows.parquet"
_NEEDED = {
    "checkpoint": str,
    "weights_hash": str,
    "name": str,
    "dim": int,
    "rows": int,
    "captions": int,
    "sides": dict,
    "files": dict,
}
_NEEDED_OF_SIDE = {"rows": int, "kind": str, "recall": dict}
_LISTS = {"nlist": int, "nprobe": int}  # of IVF
_KINDS = ("flat", "ivf_sq8")


class FolderMemory(Memory):
    """One folder.

    Args:
        path: The folder.
        weights_hash: Of the model whose features are to be compared; None: any.

    Attributes:
        facts: Content of memory.json.

    Raises:
        DataError: No memory there, or a damaged one.
        CheckpointError: It was built with other weights.
    """

    def __init__(self, path: str | Path, weights_hash: str | None = None) -> None:
        self.root, self.path = Path(path), str(path)
        self.facts = _read_facts(self.root)
        self.dim, self.weights_hash = self.facts["dim"], self.facts["weights_hash"]
        self.name = self.facts["name"]
        check_weights(self.path, self.weights_hash, self.facts["checkpoint"], weights_hash)
        for name, size in self.facts["files"].items():
            found = (self.root / name).stat().st_size if (self.root / name).is_file() else None
            if found != size:
                state = "is missing" if found is None else f"holds {found} bytes, not {size}"
                raise DataError(f"{self.root / name}: {state}; build the memory anew")

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """What is mapped goes to a worker as its path."""
        return FolderMemory, (self.path,)

    def __len__(self) -> int:
        return int(self.facts["rows"])

    def side(self, name: str) -> StoredSide:
        """Stored features of "image" or "text", and their index.

        Raises:
            DataError: A file is damaged.
        """
        assert name in SIDES, name
        return self._sides[name]

    @cached_property
    def _sides(self) -> dict[str, StoredSide]:
        return {name: self._open_side(name) for name in SIDES}

    def _open_side(self, name: str) -> StoredSide:
        facts = self.facts["sides"].get(name)
        if not facts:
            nothing = np.zeros((0, self.dim), np.float16)
            return StoredSide(nothing, None)
        path, shape = self.root / f"{name}.npy", (len(self), self.dim)
        try:
            features = np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # on hostile headers numpy's parser raises a dozen kinds
            raise DataError(f"{path}: cannot be read: {str(error)[:200]}") from None
        if features.shape != shape or features.dtype != np.float16:
            raise DataError(f"{path}: holds {features.dtype} {features.shape}, not float16 {shape}")
        rows = None
        if facts["rows"] < len(self):
            rows = np.flatnonzero(self.table(["has_caption"])["has_caption"].to_numpy())
        if facts["rows"] != len(self if rows is None else rows):
            raise DataError(f"{self.root / TABLE}: its captions are not those of the {name} index")
        exact, nprobe = facts["kind"] == "flat", facts.get("nprobe") or 1
        return StoredSide(
            features, self.root / f"{name}.faiss", rows=rows, exact=exact, nprobe=nprobe
        )

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
        keep = self._keep(exclude, max_similarity, own_images)
        scores, rows = self.side(side).search(queries, k, keep)
        return scores.to(queries.device), rows.to(queries.device)

    def _keep(
        self, exclude: np.ndarray | None, max_similarity: float | None, own_images: Tensor | None
    ) -> Keep | None:
        """Which candidates may come back."""
        if exclude is None and max_similarity is None:
            return None
        out = None if exclude is None else torch.from_numpy(np.asarray(exclude, dtype=np.int64))
        own = None if own_images is None else own_images.detach().cpu().float()

        def keep(numbers: Tensor, scores: Tensor, rows: Tensor) -> Tensor:
            kept = torch.ones_like(rows, dtype=torch.bool)
            if out is not None:
                for column in out[numbers].view(len(numbers), -1).T:  # few: rows of one sample
                    kept &= rows != column[:, None]
            if max_similarity is not None:
                near = scores if own is None else self.side("image").cosines(own[numbers], rows)
                kept &= near <= max_similarity
            return kept

        return keep

    def features(self, side: str, rows: Tensor) -> Tensor:
        """See `Memory.features`."""
        stored = self.side(side)
        return stored.unit(rows if len(stored) else torch.full_like(rows, -1))

    def table(self, columns: Sequence[str]) -> pyarrow.Table:
        """See `Memory.table`."""
        path = self.root / TABLE
        try:
            found = parquet.read_table(path, columns=list(columns))
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(f"{path}: cannot be read: {str(error)[:200]}") from None
        if len(found) != len(self) or found.num_columns != len(columns):
            raise DataError(f"{path}: is not the table of this memory; build the memory anew")
        return found


def check_weights(path: str, own: str, checkpoint: str, wanted: str | None) -> None:
    """See that features may be compared.

    Raises:
        CheckpointError: They come from other weights.
    """
    if wanted is not None and wanted != own:
        raise CheckpointError(
            f"{path}: was built with other weights ({own[:12]}, {checkpoint}) than the model's "
            f"({wanted[:12]}); build a memory from embeddings of this model"
        )


def _read_facts(root: Path) -> dict[str, Any]:
    path = root / FACTS
    if not path.is_file():
        raise DataError(f"{root}: no memory there; write one with clipkit-data memory build")
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read: {str(error)[:200]}") from None
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise DataError(f"{path}: is no memory of clipkit-data memory build")
    wrong = _wrong(facts)
    if wrong:
        raise DataError(f"{path}: {wrong}; build the memory anew")
    return facts


def _wrong(facts: dict[str, Any]) -> str:
    """What cannot be so in memory.json; "" if nothing."""
    missing = _missing(facts, _NEEDED)
    if missing or not facts["sides"]:
        return f"'{missing or 'sides'}' is missing or damaged"
    needed = {TABLE}
    for name, side in facts["sides"].items():
        if name not in SIDES or not isinstance(side, dict) or not side:
            return f"'{name}' of 'sides' is damaged"
        missing = _missing(side, _NEEDED_OF_SIDE)
        if not missing and side["kind"] not in _KINDS:
            missing = "kind"
        if not missing and side["rows"] > facts["rows"]:
            missing = "rows"
        if not missing and side["kind"] != "flat":
            missing = _missing(side, _LISTS)
        if missing:
            return f"'{missing}' of '{name}' is missing or damaged"
        needed |= {f"{name}.npy", f"{name}.faiss"}
    unknown = min(needed - facts["files"].keys(), default="")
    return f"'files' says nothing of {unknown}" if unknown else ""


def _missing(facts: Mapping[str, Any], needed: Mapping[str, type]) -> str:
    """The first name that is not there, of another type, or no number that counts anything."""
    for name, kind in needed.items():
        value = facts.get(name)
        least = 0 if name == "captions" else 1
        if type(value) is not kind or (isinstance(value, int) and value < least):
            return name
    return ""
