"""Sums over the tables of all shards, by SQL: no sample passes through Python.

Shapes: k bins.
"""

# ruff: noqa: S608 -- what goes into SQL text are own names and numbers

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow
import pyarrow.dataset as dataset

from data_tools.draws import draw
from data_tools.stats.tables import SCHEMA

BINS = 40
_TOP = 20
# label -> (SQL, whether bins grow with the value)
MEASURES = {
    "width": ("width", True),
    "height": ("height", True),
    "aspect ratio": ("width / height", True),
    "image bytes": ("image_bytes", True),
    "caption characters": ("caption_chars", False),
    "caption words": ("caption_words", False),
}
_GROUPS = {
    "format": "format",
    "mode": "mode",
    "EXIF orientation": "exif_orientation::VARCHAR",
    "members": "members",
}
_TOTALS = {
    "samples": "count(*)",
    "usable samples": "count(*) FILTER (error IS NULL)",
    "images": "count(image_bytes)",
    "captions": "count(*) FILTER (caption <> '')",
    "bytes of images": "coalesce(sum(image_bytes), 0)",
    "distinct images": "count(DISTINCT sha256)",
    "distinct captions": "count(DISTINCT caption) FILTER (caption <> '')",
}


@dataclass(frozen=True)
class Histogram:
    """Counts of a measure.

    Attributes:
        edges: (k + 1,).
        counts: (k,).
        log: Whether the bins are of equal width in the logarithm.
        summary: Quantiles and mean by name.
    """

    edges: np.ndarray
    counts: np.ndarray
    log: bool
    summary: dict[str, float]


@dataclass(frozen=True)
class Stats:
    """All sums.

    Attributes:
        totals: Name -> count over all samples.
        histograms: Measure -> its counts; none for a measure that no sample has.
        sizes: (x edges, y edges, (k, k) counts of width x height), None without images.
        groups: Name -> [(value, samples)], most common first.
        captions: [(caption, samples)] of those that occur more than once.
        words: [(word, times)].
        causes: [(cause, samples)].
        bad_shards: [(shard, bad samples, samples)], worst first.
        chosen: Samples to show: shard, row, key, caption, width, height.
    """

    totals: dict[str, int]
    histograms: dict[str, Histogram]
    sizes: tuple[np.ndarray, np.ndarray, np.ndarray] | None
    groups: dict[str, list[tuple[str, int]]]
    captions: list[tuple[str, int]]
    words: list[tuple[str, int]]
    causes: list[tuple[str, int]]
    bad_shards: list[tuple[str, int, int]]
    chosen: list[dict[str, Any]] = field(default_factory=list)


def summed_up(tables: Sequence[Path], spill: Path, *, show: int, seed: int) -> Stats:
    """Sum up tables that `write_shard_table` wrote.

    Args:
        tables: At least one.
        spill: Folder that duckdb may fill when memory is short.
        show: Samples to choose; the same for the same seed in any order of shards.
        seed: Of that choice.
    """
    with duckdb.connect(config={"temp_directory": str(spill)}) as connection:
        files = [str(table) for table in tables]
        connection.register("samples", dataset.dataset(files, schema=SCHEMA, format="parquet"))
        histograms = {
            name: found
            for name, (sql, log) in MEASURES.items()
            if (found := _histogram(connection, sql, log))
        }
        return Stats(
            totals=_totals(connection),
            histograms=histograms,
            sizes=_sizes(connection, histograms),
            groups={name: _common(connection, sql) for name, sql in _GROUPS.items()},
            captions=_common(connection, "caption", "caption <> ''", "HAVING count(*) > 1"),
            words=_words(connection),
            causes=_common(connection, "error", top=1000),
            bad_shards=connection.execute(
                "SELECT shard, count(error) AS bad, count(*) FROM samples GROUP BY shard"
                f" HAVING bad > 0 ORDER BY bad DESC, shard LIMIT {_TOP}"
            ).fetchall(),
            chosen=_chosen(connection, show, seed),
        )


def as_table(stats: Stats) -> pyarrow.Table:
    """Columns fact, item, low, high, value: totals, quantiles, bins, and counts by item."""
    lines: list[tuple[str, str, float | None, float | None, float]] = []
    lines += [("total", name, None, None, count) for name, count in stats.totals.items()]
    for name, found in stats.histograms.items():
        lines += [(name, item, None, None, value) for item, value in found.summary.items()]
        bins = zip(found.edges, found.edges[1:], found.counts)
        lines += [(name, "bin", float(low), float(high), int(n)) for low, high, n in bins]
    counted = {**stats.groups, "caption": stats.captions, "word": stats.words}
    for name, pairs in {**counted, "error": stats.causes}.items():
        lines += [(name, item, None, None, count) for item, count in pairs]
    lines += [("errors of shard", shard, None, None, bad) for shard, bad, _ in stats.bad_shards]
    kinds = [pyarrow.string()] * 2 + [pyarrow.float64()] * 3
    columns = [pyarrow.array(c, kind) for c, kind in zip(zip(*lines), kinds)]
    return pyarrow.table(columns, ["fact", "item", "low", "high", "value"])


def _totals(connection: duckdb.DuckDBPyConnection) -> dict[str, int]:
    found = connection.execute(f"SELECT {', '.join(_TOTALS.values())} FROM samples").fetchall()[0]
    return {name: int(value) for name, value in zip(_TOTALS, found)}


def _histogram(connection: duckdb.DuckDBPyConnection, sql: str, log: bool) -> Histogram | None:
    """Counts of a measure; a logarithmic one leaves out values below 1e-9."""
    rule = f"FROM samples WHERE ({sql}) {'> 1e-9' if log else 'IS NOT NULL'}"
    low, high, mean, quantiles = connection.execute(
        f"SELECT min({sql}), max({sql}), avg({sql}),"
        f" quantile_cont({sql}, [0.01, 0.25, 0.5, 0.75, 0.99]) {rule}"
    ).fetchall()[0]
    if low is None:
        return None
    names = ("1%", "25%", "50%", "75%", "99%")
    summary = {"min": low, **dict(zip(names, quantiles)), "max": high, "mean": mean}
    edges = _log_edges(low, high) if log else _whole_edges(int(low), int(high))
    counts = np.zeros(len(edges) - 1, dtype=np.int64)
    for number, count in connection.execute(
        f"SELECT {_bin(sql, edges, log)} AS bin, count(*) {rule} GROUP BY bin"
    ).fetchall():
        counts[int(number)] = count
    return Histogram(edges, counts, log, {name: float(v) for name, v in summary.items()})


def _log_edges(low: float, high: float) -> np.ndarray:
    """Edges of equal ratio; a single value stands in the middle of two octaves."""
    ends = (low, high) if high > low * 1.05 else (low / 2, high * 2)
    return np.geomspace(*ends, BINS + 1)


def _whole_edges(low: int, high: int) -> np.ndarray:
    """Edges between whole numbers, each bin as many of them."""
    step = -(-(high - low + 1) // BINS)
    return low - 0.5 + step * np.arange(-(-(high - low + 1) // step) + 1)


def _bin(sql: str, edges: np.ndarray, log: bool) -> str:
    """SQL for the number of the bin; rounding at the ends stays inside."""
    value, first, last = f"({sql})", float(edges[0]), float(edges[-1])
    if log:
        value, first, last = f"ln({sql})", math.log(first), math.log(last)
    bins = len(edges) - 1
    place = f"floor(({value} - {first!r}) * {bins / (last - first)!r})"
    return f"least(greatest({place}, 0), {bins - 1})::INTEGER"


def _sizes(
    connection: duckdb.DuckDBPyConnection, histograms: dict[str, Histogram]
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    if "width" not in histograms:
        return None
    x, y = (histograms[name].edges for name in ("width", "height"))
    counts = np.zeros((len(x) - 1, len(y) - 1), dtype=np.int64)
    for i, j, count in connection.execute(
        f"SELECT {_bin('width', x, True)} AS i, {_bin('height', y, True)} AS j, count(*)"
        " FROM samples WHERE width > 0 AND height > 0 GROUP BY i, j"
    ).fetchall():
        counts[i, j] = count
    return x, y, counts


def _common(
    connection: duckdb.DuckDBPyConnection,
    sql: str,
    rule: str = "item IS NOT NULL",
    having: str = "",
    top: int = _TOP,
) -> list[tuple[str, int]]:
    return connection.execute(
        f"SELECT {sql} AS item, count(*) AS n FROM samples WHERE {rule} GROUP BY item {having}"
        f" ORDER BY n DESC, item LIMIT {top}"
    ).fetchall()


def _words(connection: duckdb.DuckDBPyConnection) -> list[tuple[str, int]]:
    pattern = r"[\p{L}\p{M}\p{N}]+"
    return connection.execute(
        f"SELECT unnest(regexp_extract_all(lower(caption), '{pattern}')) AS word, count(*) AS n"
        f" FROM samples GROUP BY word ORDER BY n DESC, word LIMIT {_TOP}"
    ).fetchall()


def _chosen(connection: duckdb.DuckDBPyConnection, show: int, seed: int) -> list[dict[str, Any]]:
    columns = "shard, row, key, caption, width, height"
    found = connection.execute(
        f"SELECT {columns} FROM samples WHERE error IS NULL OR error LIKE '%caption%'"
        f" ORDER BY {draw(seed, 'show', 'shard', 'row::VARCHAR', 'key')}, shard, row LIMIT {show}"
    ).fetchall()
    return [dict(zip(columns.split(", "), line)) for line in found]
