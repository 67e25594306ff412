"""Each kind of dedup from end to end: the pass over the shards, the pass over all, the outcome."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from rich.console import Console
from rich.progress import Progress

from clipkit.errors import DataError
from data_tools.dedup.hashes import TABLES, hash_shard
from data_tools.dedup.outcome import check_out, write_outcome
from data_tools.map_shards import MapReport, map_shards
from data_tools.tables import read_table, shard_names, table_path

Outcome = dict[str, Any]


def dedup_exact(shards: Sequence[str], out: Path, *, pixels: bool = False, **run: Any) -> Outcome:
    """Images of equal bytes, or of equal pixels once decoded: the first in shard order stays.

    This process holds about 0.6 kB a sample.

    Raises:
        DataError: A shard failed, or `out` holds something else.
    """
    from data_tools.dedup.exact import first_of

    kind = "pixels" if pixels else "bytes"
    found = _hash_all(shards, out, "exact", kind, {}, run)
    if found is None:
        return {}
    table, facts = found
    of = first_of(table["sha256"])
    facts["arguments"] = {"compared": kind}
    return write_outcome(out, "exact", table, of, np.zeros(len(of)), facts)


def dedup_perceptual(
    shards: Sequence[str],
    out: Path,
    *,
    hash_name: str = "dhash",
    threshold: int = 6,
    mirrored: bool = False,
    group_by: str = "all",
    separator: str = "_",
    **run: Any,
) -> Outcome:
    """Images whose hashes differ in at most `threshold` bits from an exemplar's in their group.

    Raises:
        DataError: A shard failed, an argument is wrong, or `out` holds something else.
    """
    from data_tools.dedup.perceptual import group_codes, same_look

    kind, _, field = group_by.partition(":")
    if (kind, bool(field)) not in {
        ("all", False), ("shard", False), ("key", False), ("json", True)
    } or not separator:  # fmt: skip
        raise DataError(f"--group-by {group_by}: one of all, shard, key, json:<field>")
    options = {"hash": hash_name, "mirrored": mirrored, "group_field": field}
    found = _hash_all(shards, out, "perceptual", "perceptual", options, run)
    if found is None:
        return {}
    table, facts = found
    groups = group_codes(table, group_by, separator)
    of, distance = same_look(table, groups, threshold, mirrored)
    facts["arguments"] = {"hash": hash_name, "threshold": threshold, "mirrored": mirrored}
    facts["arguments"] |= {"group_by": group_by, "separator": separator}
    facts["counts"] |= {"groups": len(np.unique(groups[groups >= 0]))}
    facts["counts"] |= {"samples without group": int((groups < 0).sum())}
    return write_outcome(out, "perceptual", table, of, distance, facts)


def dedup_text(shards: Sequence[str], out: Path, *, threshold: float = 1.0, **run: Any) -> Outcome:
    """Captions that are equal once normalised (1), or of a Jaccard similarity from `threshold` on.

    Raises:
        DataError: A shard failed, an argument is wrong, or `out` holds something else.
    """
    from data_tools.dedup.exact import first_of
    from data_tools.dedup.text import near_texts

    if not 0 < threshold <= 1:
        raise DataError(f"--threshold {threshold}: choose above 0 and at most 1")
    near = threshold < 1
    found = _hash_all(shards, out, "text", "text", {"near": near}, run)
    if found is None:
        return {}
    table, facts = found
    of = first_of(table["text"])
    distance = np.zeros(len(of))
    if near:
        known = np.flatnonzero((of < 0) & table["text"].is_valid().to_numpy())
        own = table.take(known)
        places, far = near_texts(own["text"].to_pylist(), own["signature"].to_pylist(), threshold)
        hit = places >= 0
        of[known[hit]], distance[known[hit]] = known[places[hit]], far[hit]
        # what repeats a text that goes repeats what that one repeats
        again = (of >= 0) & (of[of] >= 0)
        of[again], distance[again] = of[of[again]], distance[of[again]]
    facts["arguments"] = {"threshold": threshold}
    return write_outcome(out, "text", table, of, distance, facts)


def dedup_semantic(
    embeddings: Path,
    out: Path,
    *,
    eps: float = 0.05,
    clusters: int | None = None,
    keep: str = "hard",
    greedy: bool = False,
    side: str = "image",
    seed: int = 0,
    dry_run: bool = False,
) -> Outcome:
    """SemDeDup over a folder of `clipkit embed`; samples that are not in it do not stay.

    All features are held in memory: 4 bytes times samples times dim.

    Raises:
        DataError: The folder is missing or damaged, or `out` holds something else.
    """
    from clipkit.eval.embedding_folder import open_embeddings
    from data_tools.dedup.semantic import default_clusters, same_meaning
    from data_tools.embeddings import table_of

    folder = open_embeddings(embeddings)
    clusters = clusters or default_clusters(len(folder))
    check_out(out, "semantic")
    if dry_run:
        print(f"dedup semantic: {len(folder)} samples in {clusters} clusters; "
              f"dry run, nothing is written")  # fmt: skip
        return {}
    table = table_of(folder)
    features = np.concatenate([np.zeros((0, folder.dim), np.float32)]
                              + [block for _, block in folder.blocks(side)])  # fmt: skip
    if not len(features) or not np.isfinite(features).all():
        raise DataError(f"{embeddings}: holds no features, or NaN or infinity; embed anew")
    # samples without a caption all have the features of an empty one
    rows = np.flatnonzero(folder.has_caption) if side == "text" else np.arange(len(features))
    of, distance = np.full(len(features), -1), np.zeros(len(features))
    clusters = min(clusters, len(rows))
    rule: dict[str, Any] = {"eps": eps, "clusters": clusters, "keep": keep, "greedy": greedy}
    with Progress(console=Console(file=sys.stderr)) as bar:
        task = bar.add_task("compare", total=len(rows))
        places, far = same_meaning(
            features[rows], seed=seed, tick=lambda done: bar.advance(task, done), **rule
        )
    hit = places >= 0
    of[rows[hit]], distance[rows[hit]] = rows[places[hit]], far[hit]
    arguments = {**rule, "seed": seed, "side": side, "embeddings": folder.facts["key"]}
    facts = {"eps": eps, "clusters": clusters, "arguments": arguments, "counts": {}}
    return write_outcome(out, "semantic", table, of, distance, facts)


def _hash_all(
    shards: Sequence[str],
    out: Path,
    tool: str,
    kind: str,
    options: dict[str, Any],
    run: dict[str, Any],
) -> tuple[pyarrow.Table, dict[str, Any]] | None:
    """(shard, row, key and hashes of all samples in shard order, facts); None: a dry run."""
    check_out(out, tool)
    root = os.path.commonpath([os.path.dirname(os.path.abspath(shard)) for shard in shards])
    params = {"root": root, "kind": kind, "options": options}
    report = map_shards(hash_shard, shards, out=out, params=params, label=f"dedup {tool}", **run)
    if run.get("dry_run"):
        return None
    report.raise_failures()
    names = shard_names(shards)[: len(report.shards)]
    return pyarrow.concat_tables([_named(out, name) for name in names]), _facts(report)


def _named(out: Path, name: str) -> pyarrow.Table:
    table = read_table(table_path(out / TABLES, name))
    return table.add_column(0, "shard", pyarrow.array([name] * len(table), pyarrow.string()))


def _facts(report: MapReport) -> dict[str, Any]:
    unhashed = sum(int(result["unhashed"]) for result in report.done)
    return {**report.facts(), "counts": {"kept because unreadable": unhashed}}
