"""What every kind of dedup leaves behind: keep.parquet, duplicates.parquet, summary.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow

from clipkit.errors import DataError
from data_tools.summary import write_summary
from data_tools.tables import write_keep, write_table


def check_out(out: Path, kind: str) -> None:
    """See that nothing else lies in `out`, the results of another kind among it.

    Raises:
        DataError: Something does.
    """
    known = {"tables", ".done", "keep.parquet", "duplicates.parquet", "summary.json"}
    if not out.exists():
        return
    if not out.is_dir() or {p.name for p in out.iterdir()} - known:
        raise DataError(f"{out} exists: name a new or an empty folder, or remove it")
    try:
        tool = json.loads((out / "summary.json").read_text(encoding="utf-8"))["tool"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if tool != f"dedup {kind}":
        raise DataError(f"{out}: holds the results of {tool}; name a new folder")


def write_outcome(
    out: Path,
    kind: str,
    samples: pyarrow.Table,
    of: np.ndarray,
    distance: np.ndarray,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Write the samples that stay, those that go and what they repeat, and the summary.

    Args:
        out: Folder of the results.
        kind: Of dedup.
        samples: Columns shard, row, key; n rows.
        of: (n,) int64 place of what a sample repeats, -1: it stays.
        distance: (n,) how far it is from that.
        facts: For the summary, with its "arguments" and "counts".

    Returns:
        The summary.
    """
    stay, go = np.flatnonzero(of < 0), np.flatnonzero(of >= 0)
    kept, gone, seen = (samples.take(rows) for rows in (stay, go, of[go]))
    columns = {name: gone[name] for name in ("shard", "row", "key")}
    columns |= {f"of_{name}": seen[name] for name in ("shard", "row", "key")}
    write_table(out / "duplicates.parquet", {**columns, "distance": distance[go].astype(float)})
    write_keep(out / "keep.parquet", kept["shard"], kept["row"], kept["key"], f"dedup {kind}")
    counts = {"duplicates": len(go), "kept": len(stay), **facts["counts"]}
    summary = {"samples": len(samples), **facts, "counts": counts}
    write_summary(out, f"dedup {kind}", summary)
    return summary
