"""Where the rows of a memory come from: folders of embeddings, or a memory that is to grow.

Shapes: b rows of a block, D embed dim.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow
import pyarrow.parquet as parquet

from clipkit.errors import CheckpointError, DataError
from clipkit.eval.embedding_folder import EmbeddingFolder, metadata_path, open_embeddings
from clipkit.retrieval.memory import FolderMemory

BLOCK = 16_384
SCHEMA = pyarrow.schema(
    {
        "shard": pyarrow.string(),
        "row": pyarrow.int64(),
        "key": pyarrow.string(),
        "caption": pyarrow.string(),
        "has_caption": pyarrow.bool_(),
    }
)


class RowSource(Protocol):
    """Rows with their features.

    Attributes:
        facts: "weights_hash", "checkpoint", "dim" and more.
        place: For messages.
        identity: Equal for equal rows and features.
    """

    facts: dict[str, Any]
    place: str
    identity: str

    def __len__(self) -> int: ...

    def tables(self) -> Iterator[pyarrow.Table]:
        """All rows in order, with the columns of SCHEMA."""
        ...

    def blocks(self, side: str) -> Iterator[np.ndarray]:
        """(b, D) float16 features of one side, all rows in order; anything without a caption."""
        ...


class EmbeddedRows:
    """Rows of a folder that `clipkit embed` wrote."""

    def __init__(self, folder: EmbeddingFolder) -> None:
        self.folder, self.facts, self.place = folder, folder.facts, str(folder.root)
        self.identity = str(folder.facts["key"])
        if folder.facts.get("refinements"):
            raise DataError(
                f"{folder.root}: its features were refined after the towers; embed the shards "
                f"without a calibration or a memory"
            )

    def __len__(self) -> int:
        return len(self.folder)

    def tables(self) -> Iterator[pyarrow.Table]:
        """See `RowSource`."""
        for number, rows in enumerate(self.folder.file_rows):
            path = metadata_path(self.folder.root, number)
            try:
                found = parquet.read_table(path)
                named = found.rename_columns(
                    ["row" if name == "sample" else name for name in found.column_names]
                )
                table = named.select(SCHEMA.names).cast(SCHEMA)
            except (OSError, KeyError, pyarrow.ArrowException) as error:
                raise DataError(f"{path}: cannot be read: {str(error)[:200]}") from None
            if len(table) != rows:
                raise DataError(f"{path}: {len(table)} rows, not {rows}; embed the shards anew")
            yield table

    def blocks(self, side: str) -> Iterator[np.ndarray]:
        """See `RowSource`."""
        if side not in self.folder.sides():  # none of its samples has a caption
            for start in range(0, len(self), BLOCK):
                size = min(BLOCK, len(self) - start)
                yield np.zeros((size, self.folder.dim), np.float16)
            return
        for _, block in self.folder.blocks(side, BLOCK):
            yield block.astype(np.float16)


class RememberedRows:
    """Rows of a memory, as they are."""

    def __init__(self, memory: FolderMemory) -> None:
        self.memory, self.facts, self.place = memory, memory.facts, memory.path
        self.identity = memory.name

    def __len__(self) -> int:
        return len(self.memory)

    def tables(self) -> Iterator[pyarrow.Table]:
        """See `RowSource`."""
        yield self.memory.table(SCHEMA.names).cast(SCHEMA)

    def blocks(self, side: str) -> Iterator[np.ndarray]:
        """See `RowSource`."""
        stored = self.memory.side(side).features
        for start in range(0, len(self), BLOCK):
            size = min(BLOCK, len(self) - start)
            nothing = np.zeros((size, self.memory.dim), np.float16)
            yield np.asarray(stored[start : start + size]) if len(stored) else nothing


def open_sources(embeddings: Sequence[Path], memory: Path | None = None) -> list[RowSource]:
    """The rows of a memory, if any, then those of folders of embeddings.

    Raises:
        DataError: One is missing or damaged, or none has rows.
        CheckpointError: They come from different weights.
    """
    sources: list[RowSource] = [RememberedRows(FolderMemory(memory))] if memory else []
    sources += [EmbeddedRows(open_embeddings(path)) for path in embeddings]
    first = sources[0]
    for source in sources:
        for name in ("weights_hash", "dim"):
            if source.facts[name] != first.facts[name]:
                raise CheckpointError(
                    f"{first.place} ({first.facts['checkpoint']}) and {source.place} "
                    f"({source.facts['checkpoint']}) come from different weights; embed all with "
                    f"one checkpoint"
                )
    if not sum(map(len, sources)):
        raise DataError(f"{first.place}: holds no rows; embed shards with readable images")
    return sources
