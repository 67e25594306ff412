"""What goes into which shard, fixed before the first is written, so that a build can go on.

A plan is a folder, OUT/.plan: `<number>.parquet` holds the samples of one shard, `plan.json`,
written last, says what was planned. A shard is a function of its plan file alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow

from clipkit.errors import DataError
from data_tools.tables import read_table, write_table

PLAN = ".plan"
_MARK = "plan.json"
_RECORD = 512
_END = 10_240  # tarfile rounds an archive up to so many bytes


def tar_bytes(sizes: np.ndarray) -> np.ndarray:
    """Bytes that members of these sizes take in a tar: a header, and content in whole records."""
    return _RECORD + -(-sizes // _RECORD) * _RECORD


def cut(sizes: np.ndarray, samples: int, max_bytes: int) -> list[tuple[int, int]]:
    """Cut samples laid end to end into shards: (first, one behind the last) of each.

    Args:
        sizes: (n,) bytes of each sample in a tar.
        samples: Most samples of a shard.
        max_bytes: Largest tar; a sample that is larger alone has a shard of its own.

    Raises:
        DataError: A limit is below 1.
    """
    if samples < 1 or max_bytes < 1:
        raise DataError("--samples-per-shard and --max-shard-mb must be above 0")
    ends = np.cumsum(sizes)
    shards, start = [], 0
    while start < len(sizes):
        room = max_bytes - _END + (ends[start - 1] if start else 0)
        stop = min(int(np.searchsorted(ends, room, side="right")), start + samples)
        stop = max(stop, start + 1)
        shards.append((start, stop))
        start = stop
    return shards


def shuffled(rows: pyarrow.Table, seed: int | None) -> pyarrow.Table:
    """The rows in an order drawn from `seed`; as they are where it is None."""
    if seed is None:
        return rows
    return rows.take(np.random.default_rng(seed).permutation(len(rows)))


def save_plan(
    out: Path,
    rows: pyarrow.Table,
    shards: Sequence[tuple[int, int]],
    facts: Mapping[str, Any],
    identity: Sequence[str],
) -> list[str]:
    """Files of the plan, one a shard.

    The spans of a plan that is there stay. Of its files those are written anew whose samples look
    otherwise by now (a file that was missing is there, a caption was mended), and only those.

    Args:
        out: Folder of the shards: new, empty, or of the same plan.
        rows: All samples, in order.
        shards: Spans of `rows`.
        facts: What else decides the bytes of the shards; JSON.
        identity: Columns by which two runs are known to be of one plan.

    Raises:
        DataError: `out` holds other things, or another plan.
    """
    folder = out / PLAN
    wanted = {"rows": _digest(rows.select(list(identity))), **json.loads(json.dumps(facts))}
    mark = _read_mark(folder / _MARK)
    if mark is None:
        if not shards:
            raise DataError(f"{out}: there are no samples to write")
        if out.exists() and (not out.is_dir() or {p.name for p in out.iterdir()} - {PLAN}):
            raise DataError(f"{out} exists: name a new or an empty folder, or remove it")
        shutil.rmtree(folder, ignore_errors=True)  # of a run that ended while planning
        mark = {"facts": wanted, "shards": [list(span) for span in shards]}
    elif mark["facts"] != wanted:
        raise DataError(
            f"{out}: was begun {_difference(mark['facts'], wanted)}; repeat what it was begun "
            f"with, or name a new folder"
        )
    for torn in out.glob(".*.tmp-*"):  # of a run that was killed
        torn.unlink()
    width = max(5, len(str(len(mark["shards"]) - 1)))
    files = [folder / f"{number:0{width}d}.parquet" for number in range(len(mark["shards"]))]
    for file, (start, stop) in zip(files, mark["shards"]):
        span = rows.slice(start, stop - start)
        if not file.exists() or not read_table(file).equals(span):
            write_table(file, dict(zip(span.column_names, span.columns)))
    put_json(folder / _MARK, mark)
    return [str(file) for file in files]


def write_sizes(
    out: Path, prefix: str, plans: Sequence[str], results: Sequence[dict[str, Any] | None]
) -> None:
    """OUT/sizes.json, shard -> samples, as open_clip reads it; of the shards that are done."""
    sizes = {
        shard_path(out, prefix, plan).name: result["samples"]
        for plan, result in zip(plans, results)
        if result and result["samples"]
    }
    put_json(out / "sizes.json", sizes)


def put_json(path: Path, content: Any) -> None:
    """Write a JSON file whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from None


def shard_path(out: Path, prefix: str, plan: str) -> Path:
    """Tar of a plan file: OUT/.plan/00007.parquet -> OUT/<prefix>-00007.tar."""
    return out / f"{prefix}-{Path(plan).stem}.tar"


def _read_mark(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and {"facts", "shards"} <= found.keys() else None


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """In words, what one plan has and another has not."""
    other = [
        f"{name.replace('_', ' ')} {old.get(name)} and not {value}"
        for name, value in new.items()
        if name != "rows" and old.get(name) != value
    ]
    return "with " + ", ".join(other) if other else "from a source that held other samples"


def _digest(rows: pyarrow.Table) -> str:
    digest = hashlib.sha256(str(rows.schema.remove_metadata()).encode())
    for batch in rows.combine_chunks().to_batches(max_chunksize=65_536):
        digest.update(batch.serialize())
    return digest.hexdigest()
