"""What a memory of image-text pairs answers, wherever its rows lie.

Shapes: n queries, k neighbours, m rows to leave out of each, D embed dim.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import pyarrow
from torch import Tensor

SIDES = ("image", "text")


class Memory(ABC):
    """Features of image-text pairs, numbered by row, searched by the cosine with a query.

    Attributes:
        path: Where it lies, for messages.
        dim: D.
        weights_hash: Of the model that made the features.
        name: Identity: equal names give equal answers.
    """

    path: str
    dim: int
    weights_hash: str
    name: str

    @abstractmethod
    def __len__(self) -> int:
        """Rows."""

    @abstractmethod
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
        """The k rows whose features of one side have the largest cosine; of equal ones the lowest.

        Exact over flat indexes; over IVF indexes the rows come from the lists that are probed, and
        their scores are exact.

        Args:
            queries: (n, D) unit rows of either modality.
            side: "image" or "text"; on the text side only rows with a caption are found.
            k: How many.
            exclude: (n,) or (n, m) rows that must not come back, -1 for none.
            max_similarity: Rows of a larger cosine with the query are near-duplicates of it, and
                are dropped.
            own_images: (n, D) unit image features of the samples that the queries belong to. A
                near-duplicate is then a row whose *image* is that near to it, whatever the side.

        Returns:
            (n, k) fp32 cosines, falling, and (n, k) int64 rows; -inf and -1 where there is none.

        Raises:
            DataError: A query is not finite or of another dimension, or the index is damaged.
        """

    @abstractmethod
    def features(self, side: str, rows: Tensor) -> Tensor:
        """Features of rows.

        Args:
            side: "image" or "text".
            rows: Of any shape, int64; -1 for none.

        Returns:
            (*rows, D) fp32 unit; zeros at -1 and, on the text side, at rows without a caption.
        """

    @abstractmethod
    def table(self, columns: Sequence[str]) -> pyarrow.Table:
        """Columns of what the rows are: shard, row, key, caption, has_caption."""
