"""For each training sample the rows of a memory that are nearest.

What a pair retrieves must not be the pair itself, or its own caption is the answer to be learnt
(Iscen et al. 2024, https://arxiv.org/abs/2306.07196). So the rows of the sample itself are left
out, told by the shard's file name and the key, and so are those whose image is nearly the same.

Shapes: N samples, n rows of embeddings, b of a block, m own rows, k neighbours.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow
import pyarrow.compute as compute
import torch
from rich.console import Console
from rich.progress import Progress

from clipkit.eval.embedding_folder import EmbeddingFolder, open_embeddings
from clipkit.retrieval.memory import SIDES, Memory, open_memory
from data_tools.memory.sources import EmbeddedRows
from data_tools.sample_ids import SampleIds, base_names, sample_ids
from data_tools.staging import new_folder
from data_tools.summary import write_summary

FORMAT = "clipkit-neighbours-1"
_SEARCHED = {"uni": SIDES, "cross": SIDES[::-1]}  # side searched by images and by texts
_BLOCK = 4096
_MEASURED = 1024


@dataclass(frozen=True)
class NeighbourOptions:
    """What counts as a neighbour.

    Attributes:
        k: How many.
        search: "uni": images find images, captions captions; "cross": each the other.
        max_similarity: A row whose image has a larger cosine with the sample's is left out; None:
            none is.
        allow_self: Leave nothing out, to show what the leak does.
    """

    k: int = 10
    search: Literal["uni", "cross"] = "uni"
    max_similarity: float | None = 0.98
    allow_self: bool = False


def find_neighbours(
    embeddings: Path,
    memory: str | Path,
    out: Path,
    options: NeighbourOptions = NeighbourOptions(),
    *,
    engine: str = "process",
    dry_run: bool = False,
) -> dict[str, Any]:
    """Write OUT/neighbours.json, image.npy and text.npy.

    Args:
        embeddings: Of the training shards, in their order; of the memory's weights.
        memory: Folder, or a glob.
        out: A new or an empty folder.
        options: What counts as a neighbour.
        engine: See `open_memory`.
        dry_run: Check all and write nothing.

    Returns:
        The summary.

    Raises:
        CheckpointError: The embeddings come from other weights than the memory.
        DataError: A folder is missing or damaged, or `out` holds something.
    """
    folder = open_embeddings(embeddings)
    held = open_memory(memory, folder.facts["weights_hash"], engine=engine)
    parts = EmbeddedRows(folder).tables()
    table = pyarrow.concat_tables(part.select(["shard", "row", "key"]) for part in parts)
    samples = sample_ids(folder, table)
    facts: dict[str, Any] = {
        "arguments": {**asdict(options), "memory": held.name, "embeddings": folder.facts["key"]},
        "samples": samples.total,
        "memory rows": len(held),
    }
    if dry_run:
        return facts
    own = None if options.allow_self else own_rows(table, held.table(["shard", "key"]))
    with new_folder(out) as root:
        short = _write_rows(root, folder, held, own, samples, options)
        described = {
            "format": FORMAT,
            **asdict(options),
            "memory": held.name,
            "memory_path": held.path,
            "weights_hash": held.weights_hash,
            "samples": samples.total,
            "shards": samples.shards,
        }
        (root / "neighbours.json").write_text(json.dumps(described, indent=1), encoding="utf-8")
        facts["counts"] = {"embedded": len(folder), "with a caption": int(folder.has_caption.sum())}
        facts["counts"] |= {f"{side}: samples with fewer": count for side, count in short.items()}
        if own is not None and options.max_similarity is not None:
            share = _near_duplicates(folder, held, own, options.max_similarity)
            facts["share of samples with near-duplicates"] = round(share, 4)
        write_summary(root, "neighbours", facts)
    return facts


def _write_rows(
    root: Path,
    folder: EmbeddingFolder,
    memory: Memory,
    own: np.ndarray | None,
    samples: SampleIds,
    options: NeighbourOptions,
) -> dict[str, int]:
    """Write both arrays; returns how many samples of each have fewer than k neighbours."""
    found, short = {}, dict.fromkeys(SIDES, 0)
    for side in SIDES:
        path, shape = root / f"{side}.npy", (samples.total, options.k)
        found[side] = np.lib.format.open_memmap(path, "w+", np.int64, shape)
        found[side][:] = -1
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("neighbours", total=len(folder))
        for side, at, rows in _searched(folder, memory, own, options):
            found[side][samples.ids[at]] = rows
            short[side] += int((rows[:, -1] < 0).sum())
            bar.advance(task, len(rows) if side == "image" else 0)
    for array in found.values():
        array.flush()
    return short


def _searched(
    folder: EmbeddingFolder, memory: Memory, own: np.ndarray | None, options: NeighbourOptions
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(side of the query, (b,) rows of the embeddings, (b, k) rows of the memory)."""
    near = None if options.allow_self else options.max_similarity
    for blocks in zip(*(folder.blocks(side, _BLOCK) for side in folder.sides())):
        first, images = blocks[0]
        for query, side, (_, block) in zip(SIDES, _SEARCHED[options.search], blocks):
            at = np.arange(first, first + len(block))
            if query == "text":
                at = at[folder.has_caption[at]]
            _, rows = memory.search(
                torch.from_numpy(block[at - first]),
                side,
                options.k,
                exclude=None if own is None else own[at],
                max_similarity=near,
                own_images=torch.from_numpy(images[at - first]),
            )
            yield query, at, rows.numpy()


def _near_duplicates(
    folder: EmbeddingFolder, memory: Memory, own: np.ndarray, most: float
) -> float:
    """Share of the first samples of which another row's image is nearer than `most`."""
    for first, block in folder.blocks("image", _MEASURED):
        images = torch.from_numpy(block)
        scores, _ = memory.search(images, "image", 1, exclude=own[first : first + len(block)])
        return float((scores > most).float().mean())
    return 0.0


def own_rows(samples: pyarrow.Table, memory: pyarrow.Table) -> np.ndarray:
    """(n, m) rows of the memory that are the sample itself, -1 for none; m is 1 mostly.

    Told by the shard's file name and the key, so a data set may be moved. That of another data set
    may have the same names: then one row too many is left out, which is the harmless error.
    """
    mine, held = (
        compute.binary_join_element_wise(base_names(t["shard"]), t["key"], "/")
        for t in (samples, memory)
    )
    names = compute.unique(held)
    code = compute.index_in(held, names).to_numpy()
    order = np.argsort(code, kind="stable")
    counts = np.bincount(code, minlength=len(names))
    first = np.cumsum(counts) - counts
    wanted = compute.index_in(mine, names).fill_null(-1).to_numpy()  # (n,)
    known = wanted >= 0
    most = int(counts[wanted[known]].max()) if known.any() else 1
    out = np.full((len(wanted), most), -1)
    for place in range(most):
        has = known & (counts[wanted] > place)
        out[has, place] = order[first[wanted[has]] + place]
    return out
