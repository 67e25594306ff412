"""Samples that are alike but not the same, to be trained in one batch.

NegCLIP samples hard images so (Yuksekgonul et al. 2023, https://arxiv.org/abs/2210.01936). The very
nearest of a sample often show the same thing: a window of ranks and of similarity keeps them out.

Shapes: N samples, n rows of embeddings, b of a block, w candidates, k neighbours.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import pyarrow
import pyarrow.compute as compute
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from clipkit.checkpoint.files import write_text
from clipkit.data.hard_batches import notes_path
from clipkit.errors import DataError
from clipkit.eval.embedding_folder import EmbeddingFolder, open_embeddings
from clipkit.retrieval.memory import FolderMemory
from clipkit.retrieval.memory.stored_side import StoredSide
from data_tools.memory.build import IndexOptions, build_memory
from data_tools.memory.sources import EmbeddedRows
from data_tools.sample_ids import sample_ids

FORMAT = "clipkit-mined-1"
_BLOCK = 4096


@dataclass(frozen=True)
class MineOptions:
    """Which samples count as hard negatives of each other.

    Attributes:
        by: Features that are compared.
        k: How many of a sample.
        skip_rank: So many of the nearest other samples are left out.
        max_similarity: So are those of a larger cosine; None: none is.
        flat_below: Samples from which on the search is approximate, by an IVF index.
        seed: Of that index.
    """

    by: Literal["text", "image"] = "text"
    k: int = 8
    skip_rank: int = 0
    max_similarity: float | None = None
    flat_below: int = 1_000_000
    seed: int = 0


def mine_neighbours(
    embeddings: Path, out: Path, options: MineOptions = MineOptions(), *, dry_run: bool = False
) -> dict[str, Any]:
    """Write OUT, an .npy file, and OUT.json with what it was made from.

    Args:
        embeddings: Of the shards of the run, in their order.
        out: The .npy file; an old one is replaced.
        options: Which samples count.
        dry_run: Check all and write nothing.

    Returns:
        The summary: how many samples have k neighbours, some, or none.

    Raises:
        DataError: The folder is missing or damaged or has no captions, or `out` cannot be written.
    """
    note = notes_path(out)
    folder = open_embeddings(embeddings)
    folder.check_side(options.by)
    if out.suffix != ".npy":
        raise DataError(f"{out}: name a file that ends in .npy")
    if note.exists() and not _is_own(note):
        raise DataError(f"{note}: is no file of clipkit-data mine; name another OUT, or remove it")
    table = pyarrow.concat_tables(EmbeddedRows(folder).tables())
    samples = sample_ids(folder, table)
    facts: dict[str, Any] = {
        "arguments": {**asdict(options), "embeddings": folder.facts["key"]},
        "samples": samples.total,
    }
    if dry_run:
        return facts
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as work:
            staged = Path(work) / "mined.npy"
            found = np.lib.format.open_memmap(staged, "w+", np.int64, (samples.total, options.k))
            found[:] = -1
            for at, rows in _mined(folder, table, Path(work) / "memory", options):
                found[samples.ids[at]] = np.where(rows >= 0, samples.ids[rows], -1)
            found.flush()
            facts["counts"] = _counts(found, samples.ids)
            described = {"format": FORMAT, **facts, "shards": samples.shards}
            note.unlink(missing_ok=True)  # at no time does one describe another array
            os.replace(staged, out)
            write_text(note, json.dumps(described, indent=1))
    except OSError as error:
        raise DataError(f"{out}: cannot be written: {error.strerror or error}") from None
    return facts


def _is_own(note: Path) -> bool:
    try:
        told = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(told, dict) and told.get("format") == FORMAT


def _mined(
    folder: EmbeddingFolder, table: pyarrow.Table, place: Path, options: MineOptions
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """((b,) rows of the embeddings, (b, k) rows of their neighbours)."""
    index = IndexOptions(options.flat_below, seed=options.seed, sides=(options.by,))
    build_memory([EmbeddedRows(folder)], place, index)
    side = FolderMemory(place).side(options.by)
    captions = torch.from_numpy(_caption_codes(table))
    rows = torch.arange(len(folder))
    rows = rows[torch.from_numpy(folder.has_caption)] if options.by == "text" else rows
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("mine", total=len(rows))
        for part in rows.split(_BLOCK):
            yield part.numpy(), _hard(side, part, captions, options).numpy()
            bar.advance(task, len(part))


def _hard(side: StoredSide, own: Tensor, captions: Tensor, options: MineOptions) -> Tensor:
    """(b, k) neighbours of rows `own` (b,) within the window; -1 for none."""

    def keep(numbers: Tensor, scores: Tensor, rows: Tensor) -> Tensor:
        mine = own[numbers][:, None]
        others = (rows != mine) & (rows >= 0)
        kept = others & (others.cumsum(dim=1) > options.skip_rank)
        if options.max_similarity is not None:
            kept &= scores <= options.max_similarity
        return kept & (captions[rows] != captions[mine])

    return side.search(side.unit(own), options.k, keep)[1]


def _caption_codes(table: pyarrow.Table) -> np.ndarray:
    """(n,) int64, equal for equal captions; rows without one differ from all."""
    plain = compute.utf8_lower(compute.utf8_trim_whitespace(table["caption"]))
    codes = compute.index_in(plain, compute.unique(plain)).to_numpy().astype(np.int64)
    return np.where(table["has_caption"].to_numpy(), codes, -1 - np.arange(len(codes)))


def _counts(found: np.ndarray, ids: np.ndarray) -> dict[str, int]:
    """Of the samples that were embedded."""
    left = (found[ids] >= 0).sum(axis=1)
    k = found.shape[1]
    return {
        "embedded": len(ids),
        f"with {k} neighbours": int((left == k).sum()),
        "with fewer": int(((left > 0) & (left < k)).sum()),
        "with none": int((left == 0).sum()),
    }
