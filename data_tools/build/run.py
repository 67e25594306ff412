"""A build from end to end: list, cut, pack, and say what was left out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute as compute

from clipkit.config.parts import suggest
from clipkit.errors import DataError
from data_tools.build.folder import TEMPLATE, folder_rows
from data_tools.build.img2dataset import recut
from data_tools.build.pack import CHECKS, is_mended, pack_shard, rejects_path
from data_tools.build.plan import cut, save_plan, shard_path, shuffled, tar_bytes, write_sizes
from data_tools.build.rows import Columns
from data_tools.build.tables import csv_rows, jsonl_rows, parquet_rows
from data_tools.map_shards import MapReport, map_shards
from data_tools.summary import write_summary
from data_tools.tables import read_table, write_table

FORMATS = ("folder", "csv", "tsv", "parquet", "jsonl", "img2dataset")
_IDENTITY = ("key", "image", "row")
_SUFFIXES = {
    ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl"
}  # fmt: skip


def build(
    source: Path,
    out: Path,
    *,
    kind: str | None = None,
    columns: Columns | None = None,
    separator: str | None = None,
    root: Path | None = None,
    template: str = TEMPLATE,
    samples_per_shard: int = 10_000,
    max_shard_mb: float = 1000,
    shuffle_seed: int | None = None,
    prefix: str = "shard",
    check: str = "decode",
    max_bad_fraction: float = 0.01,
    **run: Any,
) -> dict[str, Any]:
    """Build shards; the same source and options give the same bytes.

    Args:
        source: Folder or table.
        out: New, empty, or begun by the same command, which then goes on. Rejects are tried again.
        kind: One of `FORMATS`; None: told by what `source` is.
        columns: Of a table, or fields of json files beside images.
        separator: Between columns of text; default: a comma, a tab for tsv.
        root: Folder of the images that a table names; default: the table's.
        template: Caption of class folders.
        samples_per_shard: Most samples of a shard.
        max_shard_mb: Largest tar, in units of 10^6 bytes.
        shuffle_seed: Draws an order; None: as the source has them.
        prefix: Shards are <prefix>-00000.tar, ... .
        check: "decode" reads each image in full, "header" only its header.
        max_bad_fraction: Larger share of rejects is an error.
        run: Engine, workers, retries, limit and dry_run of `map_shards`.

    Returns:
        What summary.json says.

    Raises:
        DataError: Something in the source or the arguments is wrong, a shard failed, or too many
            samples are rejects; all shards that could be written are there by then.
    """
    _check(prefix, check)
    kind = kind or guess_format(source)
    limits = (samples_per_shard, int(max_shard_mb * 1e6))
    if kind == "img2dataset":
        return recut(source, out, limits, shuffle_seed, prefix, **run)
    rows = read_source(source, kind, columns or Columns(), separator, root, template)
    rows = shuffled(rows, shuffle_seed)
    shards = cut(_sizes(rows), *limits)
    if run.get("dry_run"):
        return {"samples": len(rows), "shards": len(shards), "bytes": int(_sizes(rows).sum())}
    facts: dict[str, Any] = {"source": os.path.abspath(source), "samples_per_shard": limits[0]}
    facts |= {"max_bytes": limits[1], "shuffle_seed": shuffle_seed, "prefix": prefix}
    files = save_plan(out, rows, shards, facts, _IDENTITY)
    report = _pack(files, out, prefix, check, run)
    facts = _finish(out, report, facts | {"check": check})
    report.raise_failures()
    _check_rejects(out, facts, max_bad_fraction)
    return facts


def _pack(
    files: Sequence[str], out: Path, prefix: str, check: str, run: Mapping[str, Any]
) -> MapReport:
    """Pack what is not done, and what has rejects that can be read by now."""
    for file in files:
        if is_mended(file, out, check):
            rejects_path(out, file).unlink()  # an output: without it the shard is packed again
    params = {"prefix": prefix, "check": check}
    return map_shards(pack_shard, files, out=out, params=params, label="build", **run)


def guess_format(source: Path) -> str:
    """Form of a source by its suffix or by what lies in it.

    Raises:
        DataError: Nothing there, or a file of another kind.
    """
    if source.is_dir():
        names = os.listdir(source)
        tars = [name[:-4] for name in names if name.endswith(".tar")]
        if any(f"{t}.parquet" in names or f"{t}_stats.json" in names for t in tars):
            return "img2dataset"
        tables = any(name.endswith(".parquet") for name in names)
        return "parquet" if tables else "folder"
    if not source.exists():
        raise DataError(f"{source}: no such file or folder")
    if source.suffix.lower() not in _SUFFIXES:
        raise DataError(f"{source}: cannot tell its form; give --format, one of {list(FORMATS)}")
    return _SUFFIXES[source.suffix.lower()]


def read_source(
    source: Path,
    kind: str,
    columns: Columns,
    separator: str | None,
    root: Path | None,
    template: str,
) -> pyarrow.Table:
    """Rows of a source (`rows.SCHEMA`).

    Raises:
        DataError: Unknown form, or the source cannot be read as such.
    """
    root = root or (source if source.is_dir() else source.absolute().parent)
    readers: Mapping[str, Callable[[], pyarrow.Table]] = {
        "folder": lambda: folder_rows(source, template, columns.captions),
        "csv": lambda: csv_rows(source, columns, root, separator or ","),
        "tsv": lambda: csv_rows(source, columns, root, separator or "\t"),
        "jsonl": lambda: jsonl_rows(source, columns, root),
        "parquet": lambda: parquet_rows(source, columns, root),
    }
    if kind not in readers:
        raise DataError(f"--format {kind}: unknown{suggest(kind, list(FORMATS))}")
    return readers[kind]()


def _check(prefix: str, check: str) -> None:
    if check not in CHECKS:
        raise DataError(f"--check {check}: unknown{suggest(check, list(CHECKS))}")
    if not prefix or "/" in prefix or prefix.startswith("."):
        raise DataError(f"--prefix '{prefix}' is no beginning of a file name")


def _sizes(rows: pyarrow.Table) -> np.ndarray:
    """(n,) bytes of each sample in a tar."""
    total = tar_bytes(rows["size"].to_numpy())
    for name in ("txt", "json"):
        lengths = compute.binary_length(rows[name]).to_numpy()
        total = total + np.where(lengths > 0, tar_bytes(lengths), 0)
    return total


def _finish(out: Path, report: MapReport, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """sizes.json, rejects.parquet and summary.json."""
    prefix = arguments["prefix"]
    write_sizes(out, prefix, report.shards, report.results)
    tables, causes, names = [], Counter[str](), []
    for file in report.shards:
        path = rejects_path(out, file)
        if path.exists():
            tables.append(read_table(path, ("key", "image", "cause", "detail")))
            causes.update(tables[-1]["cause"].to_pylist())
            names += [shard_path(out, prefix, file).name] * len(tables[-1])
    if tables:
        rejects = pyarrow.concat_tables(tables)
        columns = dict(zip(rejects.column_names, rejects.columns))
        write_table(out / "rejects.parquet", {"shard": names, **columns})
    else:
        (out / "rejects.parquet").unlink(missing_ok=True)
    done = report.done
    counts = {"rejects": sum(causes.values())}
    counts |= {f"rejects {cause}": count for cause, count in causes.most_common()}
    counts |= {"bytes": sum(r["bytes"] for r in done)}
    counts |= {"shards left empty": sum(not r["samples"] for r in done)}
    facts = {"arguments": dict(arguments), "counts": counts, **report.facts()}
    write_summary(out, "build", facts)
    return facts


def _check_rejects(out: Path, facts: Mapping[str, Any], limit: float) -> None:
    counts = facts["counts"]
    total = facts["samples"] + counts["rejects"]
    if counts["rejects"] <= limit * total:
        return
    causes = [f"{n} {name[8:]}" for name, n in counts.items() if name.startswith("rejects ")]
    raise DataError(
        f"{counts['rejects']} of {total} samples could not be used ({', '.join(causes[:3])}), over "
        f"--max-bad-fraction {limit}; see {out / 'rejects.parquet'}, mend them and run the same "
        f"command again, or raise it"
    )
