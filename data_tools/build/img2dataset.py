"""Output of img2dataset -> shards of even size; what it could not download is counted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as compute

from clipkit.data.tar_index import load_index
from clipkit.errors import DataError
from data_tools.reshard.run import reshard
from data_tools.summary import write_summary
from data_tools.tables import read_table, write_table


def recut(
    source: Path, out: Path, limits: tuple[int, int], seed: int | None, prefix: str, **run: Any
) -> dict[str, Any]:
    """Cut the shards of an img2dataset folder anew; members and keys stay as they are.

    Args:
        source: Its output folder: <n>.tar, <n>.parquet, <n>_stats.json.
        out: Folder of the shards.
        limits: Most samples and bytes of a shard.
        seed: Draws an order; None: as they are.
        prefix: Of the shards' names.
        run: Of `map_shards`.

    Returns:
        What summary.json says: with the rows that failed to download, by cause, and with the
        samples that its statistics promise and the tars do not hold.

    Raises:
        DataError: No shards there, or as `reshard`.
    """
    shards = sorted(str(path) for path in source.glob("*.tar"))
    if not shards:
        raise DataError(f"{source}: holds no *.tar of img2dataset")
    notes: dict[str, int] = {}
    failed = _failed(shards, notes)
    facts = reshard(
        shards,
        out,
        samples_per_shard=limits[0],
        max_bytes=limits[1],
        shuffle_seed=seed,
        prefix=prefix,
        **run,
    )
    if not run.get("dry_run"):
        if failed:
            columns = {name: [row[name] for row in failed] for name in failed[0]}
            write_table(out / "rejects.parquet", columns)
        facts["counts"] = {**facts["counts"], **notes}
        write_summary(out, "build", facts)
    return facts


def _failed(shards: Sequence[str], counts: dict[str, int]) -> list[dict[str, str]]:
    """Rows that were not downloaded; fills in `counts`."""
    out = []
    counts |= {"failed downloads": 0, "lost since": 0, "shards without end mark": 0}
    for shard in shards:
        stem = Path(shard.removesuffix(".tar"))
        if stem.with_name(f"{stem.name}.parquet").exists():
            table = read_table(stem.with_name(f"{stem.name}.parquet"))
            if "status" in table.column_names:
                table = table.filter(compute.not_equal(table["status"], "success"))
                for row in table.to_pylist():
                    cause = row.get("error_message") or row["status"]
                    out.append(
                        {
                            "shard": Path(shard).name,
                            "key": str(row.get("key")),
                            "image": str(row.get("url")),
                            "cause": str(row["status"]),
                            "detail": str(cause),
                        }
                    )
        promised = _promised(stem.with_name(f"{stem.name}_stats.json"))
        if promised is None:
            counts["shards without end mark"] += 1
        else:
            counts["lost since"] += max(promised - len(load_index(shard, write=False)), 0)
    counts["failed downloads"] = len(out)
    return out


def _promised(path: Path) -> int | None:
    """Samples that were downloaded into a shard; None: its download did not end."""
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["successes"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
