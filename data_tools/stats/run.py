"""One run: a table for each shard, then their sums, the page and the summary."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipkit.checkpoint.files import write_text
from clipkit.errors import DataError
from data_tools.map_shards import MapReport, map_shards
from data_tools.stats.aggregate import Stats, as_table, summed_up
from data_tools.stats.page import Shards, page
from data_tools.stats.tables import FOLDER, write_shard_table
from data_tools.summary import write_summary
from data_tools.tables import shard_names, table_path, write_table


def write_stats(
    paths: Sequence[str],
    out: Path,
    *,
    decode: bool = False,
    show: int = 24,
    seed: int = 0,
    command: str = "",
    dry_run: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Write OUT/tables/, stats.parquet, stats.html and summary.json.

    Args:
        paths: Of the shards.
        out: Folder.
        decode: Decode every image too.
        show: Samples on the page.
        seed: Draws them.
        command: Shown on the page.
        dry_run: Say what would be done, and touch nothing.
        **options: Of `map_shards`: engine, workers, retries, limit, progress.

    Returns:
        The summary; empty in a dry run.

    Raises:
        DataError: Some shards could not be read; all else is written before.
    """
    names = shard_names(paths)
    root = os.path.abspath(paths[0])[: -len(names[0])]
    report = map_shards(
        write_shard_table, paths, out=out, params={"root": root, "decode": decode},
        dry_run=dry_run, label="stats", **options,
    )  # fmt: skip
    if dry_run:
        return {}
    shards = _shards(report, dict(zip(paths, names)))
    if not shards.paths:
        report.raise_failures()
    tables = [table_path(out / FOLDER, name) for name in shards.paths]
    spill = out / ".spill"
    try:
        stats = summed_up(tables, spill, show=show, seed=seed)
    finally:
        shutil.rmtree(spill, ignore_errors=True)
    summed = as_table(stats)
    write_table(out / "stats.parquet", dict(zip(summed.column_names, summed.columns)))
    try:
        write_text(out / "stats.html", page(stats, shards, command, decode))
    except OSError as error:
        raise DataError(f"{out}/stats.html: cannot be written: {error.strerror}") from None
    facts = _facts(report, stats, shards, {"decode": decode, "seed": seed})
    write_summary(out, "stats", facts)
    report.raise_failures()
    return facts


def command_line(shards: Sequence[str], out: Path, decode: bool) -> str:
    """The command that does the same again."""
    words = ["clipkit-data", "stats", *shards, str(out), *(["--decode"] if decode else [])]
    return shlex.join(words)


def _shards(report: MapReport, names: dict[str, str]) -> Shards:
    done = [(s, r) for s, r in zip(report.shards, report.results) if r is not None]
    return Shards(
        paths={names[shard]: shard for shard, _ in done},
        damaged=[(names[shard], result["damage"]) for shard, result in done if result["damage"]],
        failed=report.failures,
    )


def _facts(
    report: MapReport, stats: Stats, shards: Shards, arguments: dict[str, Any]
) -> dict[str, Any]:
    return {
        "arguments": arguments,
        **report.facts(),
        "counts": {name: count for name, count in stats.totals.items() if name != "samples"},
        "errors": dict(stats.causes),
        "damaged_shards": [{"shard": name, "damage": damage} for name, damage in shards.damaged],
    }
