"""Build a memory: features and rows as they come, then an index of each side, its recall measured.

Shapes: N rows, D embed dim.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute as compute
import pyarrow.parquet as parquet
import torch
from rich.console import Console
from rich.progress import Progress

from clipkit.checkpoint.files import sha256
from clipkit.errors import ConfigError, DataError
from clipkit.retrieval.memory import SIDES, FolderMemory
from clipkit.retrieval.memory.folder import FACTS, FORMAT, TABLE
from clipkit.retrieval.memory.stored_side import StoredSide, unit_rows
from data_tools.memory.faiss_index import FLAT, IVF, build_index, default_lists
from data_tools.memory.recall import recall, sampled_rows, true_scores
from data_tools.memory.sources import BLOCK, SCHEMA, RowSource
from data_tools.staging import new_folder
from data_tools.summary import write_summary

K = 10  # neighbours that recall is of


@dataclass(frozen=True)
class IndexOptions:
    """How rows are indexed.

    Attributes:
        flat_below: A side of fewer rows gets a flat index, which is exact.
        nlist: Lists of IVF; None: by the number of rows.
        nprobe: Lists searched, at least.
        max_nprobe: And at most: it is doubled until `target_recall`.
        target_recall: Recall at 10 against flat.
        queries: Rows that recall is measured with.
        seed: Of k-means and of those rows.
        sides: Which to store.
    """

    flat_below: int = 1_000_000
    nlist: int | None = None
    nprobe: int = 8
    max_nprobe: int = 256
    target_recall: float = 0.95
    queries: int = 256
    seed: int = 0
    sides: tuple[str, ...] = SIDES

    def kind(self, rows: int) -> str:
        """Of a side of so many rows."""
        return FLAT if rows < self.flat_below else IVF

    def check(self) -> None:
        """See that they can be met.

        Raises:
            ConfigError: They cannot.
        """
        if not 1 <= self.nprobe <= self.max_nprobe:
            raise ConfigError(f"--nprobe {self.nprobe}: choose 1 to --max-nprobe {self.max_nprobe}")
        if not 0 <= self.target_recall <= 1:
            raise ConfigError(f"--target-recall {self.target_recall}: is a share from 0 to 1")


def build_memory(
    sources: Sequence[RowSource], out: Path, options: IndexOptions = IndexOptions()
) -> dict[str, Any]:
    """Write a memory of all rows of the sources, in their order.

    Features are mapped, the index of one side at a time is held in memory: 4 bytes times rows times
    dim where it is flat, 1 byte where it is not.

    Args:
        sources: See `sources.open_sources`; all of the same weights.
        out: A new or an empty folder, or one that holds just this memory.
        options: Of the indexes.

    Returns:
        Content of memory.json.

    Raises:
        ConfigError: The options do not fit.
        DataError: `out` holds something else or cannot be written, or a source is damaged.
    """
    options.check()
    inputs = _digest([s.identity for s in sources], asdict(options))
    known = _finished(out, inputs)
    if known is not None:
        return known
    start = time.monotonic()
    with new_folder(out) as root, Progress(console=Console(stderr=True)) as bar:
        captions, rows = _write_table(root / TABLE, sources)
        sides = options.sides if captions.any() else SIDES[:1]
        digests = [_write_features(root, side, sources, captions, bar) for side in sides]
        indexed = {side: _write_index(root, side, captions, options, bar) for side in sides}
        facts = {
            "format": FORMAT,
            **{name: sources[0].facts[name] for name in ("weights_hash", "checkpoint", "dim")},
            "rows": len(captions),
            "captions": int(captions.sum()),
            "sides": indexed,
            "sources": [{"path": s.place, "rows": len(s)} for s in sources],
            "inputs": inputs,
        }
        found_by = {s: {**index, "recall": None} for s, index in indexed.items()}
        facts["name"] = _digest(rows, digests, found_by, options.seed)
        facts["files"] = {path.name: path.stat().st_size for path in sorted(root.iterdir())}
        facts["sha256"] = {name: sha256(root / name) for name in facts["files"]}
        facts["versions"] = {name: version(name) for name in ("clipkit", "faiss-cpu", "numpy")}
        facts["seconds"] = round(time.monotonic() - start, 3)
        (root / FACTS).write_text(json.dumps(facts, indent=1), encoding="utf-8")
        write_summary(root, "memory", {"arguments": asdict(options), **summary(facts)})
    return facts


def summary(facts: dict[str, Any]) -> dict[str, Any]:
    """What is printed of memory.json."""
    shown = {name: facts[name] for name in ("rows", "captions", "dim", "checkpoint")}
    shown |= {"weights": facts["weights_hash"][:12], "name": facts["name"]}
    for side, index in facts["sides"].items():
        shown[f"{side} index"] = index["kind"] + (
            f", {index['nprobe']} of {index['nlist']} lists" if index["kind"] == IVF else ""
        )
        for query, share in index["recall"].items():
            shown[f"{side} recall@{K} for {query} queries"] = share
    return shown


def _finished(out: Path, inputs: str) -> dict[str, Any] | None:
    """memory.json of `out` where it is made of just these inputs.

    Raises:
        DataError: It is, but a file was changed since.
    """
    try:
        memory = FolderMemory(out)
    except DataError:
        return None  # nothing, or damaged: `new_folder` decides
    if memory.facts.get("inputs") != inputs:
        return None
    verify(memory)
    return memory.facts


def verify(memory: FolderMemory) -> None:
    """Read all files, and see that each is what was written.

    Raises:
        DataError: One is not.
    """
    hashes = memory.facts.get("sha256")
    for name in memory.facts["files"]:
        path = memory.root / name
        if not isinstance(hashes, dict) or hashes.get(name) != sha256(path):
            raise DataError(
                f"{path}: is not what was written; remove {memory.root} and build the memory anew"
            )


def _write_table(path: Path, sources: Sequence[RowSource]) -> tuple[np.ndarray, str]:
    """(N,) bool, which rows have a caption; and the hash of all rows."""
    captions, digest = [], hashlib.sha256()
    with parquet.ParquetWriter(path, SCHEMA) as writer:
        for source in sources:
            for table in source.tables():
                writer.write_table(table)
                captions.append(table["has_caption"].to_numpy())
                for part in table.to_batches(max_chunksize=BLOCK):
                    columns = [part[name].cast(pyarrow.string()) for name in SCHEMA.names]
                    lines = compute.binary_join_element_wise(*columns, "\0")
                    digest.update("\n".join([*lines.to_pylist(), ""]).encode())
    return np.concatenate(captions), digest.hexdigest()


def _write_features(
    root: Path, side: str, sources: Sequence[RowSource], captions: np.ndarray, bar: Progress
) -> str:
    """Write <side>.npy by blocks; returns the hash of its rows."""
    shape = (len(captions), int(sources[0].facts["dim"]))
    described = {"descr": "<f2", "fortran_order": False, "shape": shape}
    digest, first = hashlib.sha256(), 0
    task = bar.add_task(f"{side} features", total=len(captions))
    with open(root / f"{side}.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, described)
        for source in sources:
            for block in source.blocks(side):
                if side == "text":
                    has = captions[first : first + len(block), None]
                    block = np.where(has, block, np.float16(0))
                if not np.isfinite(block).all():
                    raise DataError(f"{source.place}: holds NaN or infinity; embed the shards anew")
                content = block.astype("<f2").tobytes()
                file.write(content)
                digest.update(content)
                first += len(block)
                bar.advance(task, len(block))
    return digest.hexdigest()


def _write_index(
    root: Path, side: str, captions: np.ndarray, options: IndexOptions, bar: Progress
) -> dict[str, Any]:
    """Write <side>.faiss; returns what memory.json says of it."""
    import faiss

    features = np.load(root / f"{side}.npy", mmap_mode="r", allow_pickle=False)
    rows = np.flatnonzero(captions) if side == "text" else np.arange(len(captions))
    kind = options.kind(len(rows))
    nlist = min(options.nlist or default_lists(len(rows)), len(rows)) if kind == IVF else 1
    task = bar.add_task(f"{side} index, {kind}", total=len(rows))
    index = build_index(
        features, rows, kind=kind, nlist=nlist, seed=options.seed,
        tick=lambda done: bar.advance(task, done),
    )  # fmt: skip
    try:
        faiss.write_index(index, str(root / f"{side}.faiss"))
    except RuntimeError as error:
        line = str(error).strip().splitlines()[-1][-200:]
        raise DataError(f"{root / side}.faiss: cannot be written: {line}") from None
    stored = StoredSide(
        features, index, rows=rows, exact=kind == FLAT, nprobe=min(options.nprobe, nlist)
    )
    measured = _measure(stored, root, side, captions, options, min(nlist, options.max_nprobe))
    facts: dict[str, Any] = {"rows": len(rows), "kind": kind}
    if kind == IVF:
        facts |= {"nlist": nlist, "nprobe": stored.nprobe}
    return {**facts, "recall": measured}


def _measure(
    stored: StoredSide,
    root: Path,
    side: str,
    captions: np.ndarray,
    options: IndexOptions,
    most: int,
) -> dict[str, float]:
    """Recall by the queries' modality; until that of `side` suffices, `stored.nprobe` rises."""
    measured: dict[str, float] = {}
    for query in sorted(options.sides, key=lambda name: name != side):
        path = root / f"{query}.npy"
        rows = np.flatnonzero(captions) if query == "text" else np.arange(len(captions))
        if not path.exists() or not len(rows):
            continue
        own = sampled_rows(rows, options.queries, options.seed)
        features = np.load(path, mmap_mode="r", allow_pickle=False)
        queries = torch.from_numpy(unit_rows(features, own.numpy()))
        truth = true_scores(stored, queries, own, K)
        measured[query] = recall(stored, queries, own, truth)
        while query == side and measured[side] < options.target_recall and stored.nprobe < most:
            stored.nprobe = min(2 * stored.nprobe, most)
            measured[side] = recall(stored, queries, own, truth)
    return measured


def _digest(*content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
