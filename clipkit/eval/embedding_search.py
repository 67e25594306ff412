"""Exact search of a folder of embeddings: the rows closest to one query, by blocks.

Shapes: D embed dim, b rows of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from clipkit.data.bad_samples import BadSample
from clipkit.data.decode import open_image
from clipkit.errors import CheckpointError, DataError
from clipkit.eval.embed import Embedder
from clipkit.eval.embedding_folder import EmbeddingFolder

_MAX_PIXELS = 50_000_000


@dataclass(frozen=True)
class Hit:
    """One row found.

    Attributes:
        rank: From 1.
        score: Cosine with the query.
        key, caption: Of the sample; "" where it has no caption.
        shard: Path of the tar it came from.
        sample: Its number in that tar.
    """

    rank: int
    score: float
    key: str
    caption: str
    shard: str
    sample: int


def search(folder: EmbeddingFolder, query: Tensor, k: int, side: str = "image") -> list[Hit]:
    """The k rows with the largest cosine; of equal ones the first.

    Args:
        folder: What is searched.
        query: (D,).
        k: At most so many hits.
        side: "image" or "text"; on the text side only samples that have a caption are found.

    Raises:
        DataError: A file is missing or damaged, or no sample has a caption.
        CheckpointError: The query comes from a model of another dimension.
    """
    if query.shape != (folder.dim,):
        raise CheckpointError(
            f"{folder.root}: holds features of dimension {folder.dim}, the checkpoint gives "
            f"{query.numel()}; give --checkpoint with the one it was written with"
        )
    unit = torch.nn.functional.normalize(query.double(), dim=0)
    usable = folder.has_caption if side == "text" else None
    scores, rows = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    for first, block in folder.blocks(side):
        found = (torch.from_numpy(block).double() @ unit).float()  # (b,)
        numbers = torch.arange(first, first + len(found))
        if usable is not None:
            kept = torch.from_numpy(usable[first : first + len(found)])
            found, numbers = found[kept], numbers[kept]
        scores, rows = _first(torch.cat([scores, found]), torch.cat([rows, numbers]), k)
    samples = folder.metadata(rows.tolist())
    return [
        Hit(rank, score, s["key"], s["caption"] or "", s["shard"], s["sample"])
        for rank, (score, s) in enumerate(zip(scores.tolist(), samples), 1)
    ]


def _first(scores: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of rows in rising order, equal scores in the order of their rows."""
    order = torch.sort(scores, descending=True, stable=True).indices[:k]
    return scores[order], rows[order]


@dataclass(frozen=True)
class _OneImage:
    """A single image as a source."""

    image: Image.Image
    place: str = "query"
    identity: str = "query"

    def __len__(self) -> int:
        return 1

    def images(self, start: int, stop: int) -> Iterator[Image.Image]:
        """The image."""
        yield self.image


def encode_text(model: Embedder, text: str) -> Tensor:
    """(D,) unit feature of a query."""
    return model.texts([text])[0]


def encode_image(model: Embedder, image: Image.Image) -> Tensor:
    """(D,) unit feature of a query."""
    return model.images(_OneImage(image))[0]


def open_query_image(path: Path) -> Image.Image:
    """RGB image of a file.

    Raises:
        DataError: It cannot be read.
    """
    try:
        return open_image(path.read_bytes(), _MAX_PIXELS)
    except OSError as error:
        raise DataError(f"--image {path}: cannot be read: {error.strerror}") from None
    except BadSample as error:
        raise DataError(
            f"--image {path}: is no JPEG, PNG or WebP that can be read: {error}"
        ) from None
