"""Embeddings on disk, in clip-retrieval's layout, and how they are read.

    OUT/img_emb/img_emb_<i>.npy        (rows, D) float16, plain numpy
    OUT/text_emb/text_emb_<i>.npy      the same for captions; not there where no sample has one
    OUT/metadata/metadata_<i>.parquet  key, caption, has_caption, shard, sample; row for row
    OUT/index.json                     model, counts, versions; there only when all else is

Shapes: D embed dim.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as parquet

from clipkit.errors import CheckpointError, DataError

FORMAT = "clipkit-embeddings-1"
INDEX = "index.json"
SHEET = "search.html"
SUMMARY = "summary.json"
SIDES = ("image", "text")
_FOLDERS = {"image": "img_emb", "text": "text_emb"}
_ROWS = pyarrow.schema(
    {"key": pyarrow.string(), "caption": pyarrow.string(), "has_caption": pyarrow.bool_(),
     "shard": pyarrow.string(), "sample": pyarrow.int64()}
)  # fmt: skip
_NEEDED = {
    "checkpoint": str,
    "weights_hash": str,
    "precision": str,
    "key": str,
    "dim": int,
    "rows": int,
    "text": bool,
    "file_rows": list,
}


def features_path(root: Path, side: str, number: int) -> Path:
    """File of features of one side, "image" or "text"."""
    return root / _FOLDERS[side] / f"{_FOLDERS[side]}_{number}.npy"


def metadata_path(root: Path, number: int) -> Path:
    """File of what the rows are."""
    return root / "metadata" / f"metadata_{number}.parquet"


def is_own(root: Path) -> bool:
    """Whether all in a folder was written by an embed command or search, so it may be replaced."""
    names = {*_FOLDERS.values(), "metadata", INDEX, SHEET, SUMMARY}
    try:
        facts = json.loads((root / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    marked = isinstance(facts, dict) and facts.get("format") == FORMAT
    return marked and all(path.name in names for path in root.iterdir())


@dataclass
class EmbeddingFolder:
    """An opened folder.

    Attributes:
        root: The folder.
        facts: Content of index.json.
    """

    root: Path
    facts: dict[str, Any]

    def __len__(self) -> int:
        return int(self.facts["rows"])

    @property
    def dim(self) -> int:
        """D."""
        return int(self.facts["dim"])

    @property
    def file_rows(self) -> list[int]:
        """Rows of each file."""
        return [int(n) for n in self.facts["file_rows"]]

    @property
    def refinements(self) -> list[str]:
        """Names of what was done to the features after the towers, in order."""
        return [str(name) for name in self.facts.get("refinements", [])]

    def check_refinements(self, names: Sequence[str], remedy: str) -> None:
        """See that features refined so may be compared with those here.

        Raises:
            CheckpointError: They are refined otherwise; names both.
        """
        if self.refinements != list(names):
            here, there = (" + ".join(n) or "none" for n in (self.refinements, names))
            raise CheckpointError(
                f"{self.root}: its features were refined by {here}, those of the checkpoint by "
                f"{there}; {remedy}"
            )

    def sides(self) -> tuple[str, ...]:
        """ "image", and "text" where there are captions."""
        return SIDES if self.facts["text"] else SIDES[:1]

    def check_side(self, side: str) -> None:
        """See that there are features of this side.

        Raises:
            DataError: No sample has a caption.
        """
        if side not in self.sides():
            raise DataError(f"{self.root}: its samples have no captions; search on the image side")

    def check(self) -> None:
        """See that every file is there, whole, and of the shape that index.json says.

        Raises:
            DataError: One is not.
        """
        for number, rows in enumerate(self.file_rows):
            for side in self.sides():
                self._features(side, number)
            found = self._table_file(number).metadata.num_rows
            if found != rows:
                raise DataError(f"{metadata_path(self.root, number)}: {found} rows, not {rows}")

    def _features(self, side: str, number: int) -> np.ndarray:
        path, shape = features_path(self.root, side, number), (self.file_rows[number], self.dim)
        try:
            # an empty file cannot be mapped
            found = np.load(path, mmap_mode="r" if shape[0] else None, allow_pickle=False)
        except Exception as error:  # on hostile headers numpy's parser raises a dozen kinds
            raise DataError(f"{path}: cannot be read: {str(error)[:200]}") from None
        if found.shape != shape or found.dtype.kind != "f":
            raise DataError(f"{path}: holds {found.dtype} {found.shape}, not float {shape}")
        return found

    def blocks(self, side: str, size: int = 16_384) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, (b, D) fp32 unit rows) over all rows, memory-mapped, `size` at once.

        Raises:
            DataError: A file is missing or damaged, or there are no captions.
        """
        self.check_side(side)
        first = 0
        for number, rows in enumerate(self.file_rows):
            features = self._features(side, number)
            for start in range(0, rows, size):
                block = np.asarray(features[start : start + size], dtype=np.float32)
                # half precision leaves lengths off by up to 5e-4
                norms = np.linalg.norm(block, axis=1, keepdims=True)
                yield first + start, block / np.maximum(norms, np.float32(1e-12))
            first += rows

    @cached_property
    def has_caption(self) -> np.ndarray:
        """(rows,) bool."""
        parts = []
        for number, rows in enumerate(self.file_rows):
            with self._told(number):
                table = self._table_file(number).read(columns=["has_caption"])
                parts.append(table.cast(pyarrow.schema([_ROWS.field("has_caption")])))
            if len(parts[-1]) != rows:
                raise DataError(f"{metadata_path(self.root, number)}: has not {rows} rows")
        return np.concatenate([part["has_caption"].to_numpy() for part in parts]).astype(bool)

    def metadata(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """What rows are: {"key", "caption", "has_caption", "shard", "sample"} of each.

        Raises:
            DataError: A file is missing or damaged.
        """
        ends = np.cumsum(self.file_rows)
        out = []
        for row in rows:
            number = int(np.searchsorted(ends, row, side="right"))
            inside = row - int(ends[number]) + self.file_rows[number]
            out.append(self._metadata_row(number, inside))
        return out

    def _metadata_row(self, number: int, row: int) -> dict[str, Any]:
        with self._told(number):
            file = self._table_file(number)
            group = 0
            while row >= file.metadata.row_group(group).num_rows:
                row -= file.metadata.row_group(group).num_rows
                group += 1
            table = file.read_row_group(group, columns=_ROWS.names).select(_ROWS.names)
            found: dict[str, Any] = table.slice(row, 1).cast(_ROWS).to_pylist()[0]
        if any(found[name] is None for name in _ROWS.names if name != "caption"):
            raise DataError(f"{metadata_path(self.root, number)}: row {row} lacks a value")
        return found

    def _table_file(self, number: int) -> parquet.ParquetFile:
        with self._told(number):
            return parquet.ParquetFile(metadata_path(self.root, number))

    @contextmanager
    def _told(self, number: int) -> Iterator[None]:
        """Whatever a damaged table raises, it is one clear error."""
        try:
            yield
        except (OSError, LookupError, ValueError, RuntimeError, pyarrow.ArrowException) as error:
            reason = " ".join(str(error).split())[:200]
            path = metadata_path(self.root, number)
            raise DataError(f"{path}: cannot be read: {reason}") from None


def open_embeddings(root: str | Path) -> EmbeddingFolder:
    """Open a folder of embeddings.

    Raises:
        DataError: No index there, or a damaged one.
    """
    root = Path(root)
    path = root / INDEX
    if not path.is_file():
        raise DataError(
            f"{root}: no index there; write one with clipkit embed CHECKPOINT SHARDS OUT"
        )
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read: {str(error)[:200]}") from None
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise DataError(f"{path}: is no index of clipkit embed; write one with clipkit embed")
    needed = {**_NEEDED, **({"refinements": list} if "refinements" in facts else {})}
    for name, kind in needed.items():
        if not isinstance(facts.get(name), kind):
            raise DataError(f"{path}: '{name}' is missing or damaged; write it anew")
    rows = facts["file_rows"]
    if not all(isinstance(n, int) and n >= 0 for n in rows) or sum(rows) != facts["rows"]:
        raise DataError(f"{path}: 'file_rows' does not add up to 'rows'; write it anew")
    return EmbeddingFolder(root, facts)
