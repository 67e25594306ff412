"""Cuts shards anew, whole or by keep-lists; members stay byte for byte."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow

from clipkit.data.shard_writer import write_shard
from clipkit.data.tar_index import TarIndex, load_indexes
from clipkit.errors import DataError
from data_tools.build.plan import cut, save_plan, shard_path, shuffled, tar_bytes, write_sizes
from data_tools.map_shards import map_shards
from data_tools.summary import write_summary
from data_tools.tables import read_keep, read_table, shard_names

_IDENTITY = ("key", "shard")
_LONG_NAME = 1536
Kept = dict[str, tuple[np.ndarray, list[str]]]


def reshard(
    shards: Sequence[str],
    out: Path,
    *,
    keeps: Sequence[Path] = (),
    samples_per_shard: int = 10_000,
    max_bytes: int = 1_000_000_000,
    shuffle_seed: int | None = None,
    prefix: str = "shard",
    new_keys: bool = False,
    **run: Any,
) -> dict[str, Any]:
    """Write the kept samples to shards of their own; the same arguments give the same bytes.

    This process holds about 1 kB a sample.

    Args:
        shards: Paths of the sources; the same as the keep-lists were made from.
        out: New, empty, or begun by the same command.
        keeps: Keep-lists (`tables.write_keep`); a sample stays if all of them name it.
        samples_per_shard, max_bytes: Limits of a shard.
        shuffle_seed: Draws an order; None: as they are.
        prefix: Of the shards' names.
        new_keys: Replace keys by numbers.
        run: Engine, workers, retries, limit and dry_run of `map_shards`.

    Returns:
        What summary.json says.

    Raises:
        DataError: A keep-list names what is not there, two samples of one new shard share a key,
            `out` holds other things, or a shard failed.
    """
    indexes = load_indexes(list(shards))
    notes = {i.path: i.damage for i in indexes if i.damage}
    rows = shuffled(_rows(indexes, _select(indexes, keeps)), shuffle_seed)
    if new_keys:
        numbers = pyarrow.array([f"{i:09d}" for i in range(len(rows))], pyarrow.string())
        rows = rows.set_column(rows.column_names.index("key"), "key", numbers)
    spans = cut(rows["bytes"].to_numpy(), samples_per_shard, max_bytes)
    _check_keys(rows["key"].to_pylist(), spans)
    counts = {"samples given": sum(len(i) for i in indexes), "samples kept": len(rows)}
    counts |= {"samples known lost": sum(max(i.expected - len(i), 0) for i in indexes)}
    if run.get("dry_run"):
        return {"shards": len(spans), "counts": counts}
    facts: dict[str, Any] = {"samples_per_shard": samples_per_shard, "max_bytes": max_bytes}
    facts |= {"shuffle_seed": shuffle_seed, "new_keys": new_keys, "prefix": prefix}
    files = save_plan(out, rows, spans, facts, _IDENTITY)
    report = map_shards(
        cut_shard, files, out=out, params={"prefix": prefix}, label="reshard", **run
    )
    write_sizes(out, prefix, report.shards, report.results)
    counts |= {"bytes": sum(r["bytes"] for r in report.done), "damaged shards": len(notes)}
    arguments = facts | {"keep": [str(path) for path in keeps], "damage": notes}
    summary = {"arguments": arguments, "counts": counts, **report.facts()}
    write_summary(out, "reshard", summary)
    report.raise_failures()
    return summary


def cut_shard(shard: str, out: Path, *, prefix: str) -> dict[str, Any]:
    """Write OUT/<prefix>-<number>.tar of a plan file.

    Raises:
        DataError: A source is gone or shorter than before, or nothing can be written.
    """
    rows = read_table(Path(shard)).to_pylist()
    path = shard_path(out, prefix, shard)
    facts = write_shard(path, _samples(rows))
    return {
        "samples": facts.samples,
        "bytes": facts.bytes,
        "sha256": facts.sha256,
        "outputs": path.name,
    }


def _samples(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, dict[str, bytes]]]:
    for row in rows:
        members = {}
        try:
            with open(row["shard"], "rb", buffering=0) as file:
                for name, offset, size in zip(row["extensions"], row["offsets"], row["sizes"]):
                    if name in members:  # of equal members the first counts, as in training
                        continue
                    members[name] = os.pread(file.fileno(), size, offset)
                    if len(members[name]) < size:
                        raise DataError(f"shard '{row['shard']}' has become shorter")
        except OSError as error:
            raise DataError(f"shard '{row['shard']}': {error.strerror}") from None
        yield row["key"], members


def _select(indexes: Sequence[TarIndex], keeps: Sequence[Path]) -> list[np.ndarray]:
    """Rows of each shard that all keep-lists name, ascending."""
    names = shard_names([index.path for index in indexes])
    chosen = [np.arange(len(index)) for index in indexes]
    for path in keeps:
        kept = read_keep(path)
        unknown = next((name for name in kept if name not in names), None)
        if unknown is not None:
            raise DataError(
                f"{path}: names the shard '{unknown}', which is not among the given ones "
                f"({names[0]}, ...); give the shards that it was made from"
            )
        for place, (name, index) in enumerate(zip(names, indexes)):
            rows = _checked(path, index, name, kept)
            chosen[place] = np.intersect1d(chosen[place], rows)
    return chosen


def _checked(path: Path, index: TarIndex, name: str, kept: Kept) -> np.ndarray:
    """Rows that a keep-list names in one shard, their keys compared."""
    rows, keys = kept.get(name, (np.zeros(0, dtype=np.int64), []))
    if len(rows) and not 0 <= rows[0] <= rows[-1] < len(index):
        raise DataError(f"{path}: names row {rows[-1]} of {name}, which has {len(index)} samples")
    found = index.keys[rows]
    wrong = np.flatnonzero(found != np.array(keys, dtype=object))
    if len(wrong):
        row = wrong[0]
        raise DataError(
            f"{path}: row {rows[row]} of {name} is '{keys[row]}' there and '{found[row]}' in the "
            f"shard; the shard is not the one the list was made from"
        )
    return rows


def _rows(indexes: Sequence[TarIndex], chosen: Sequence[np.ndarray]) -> pyarrow.Table:
    """key, shard, stamp, bytes, and the members of each chosen sample."""
    return pyarrow.concat_tables([_shard_rows(i, rows) for i, rows in zip(indexes, chosen)])


def _shard_rows(index: TarIndex, rows: np.ndarray) -> pyarrow.Table:
    counts = (index.starts[1:] - index.starts[:-1])[rows]
    ends = np.concatenate([[0], np.cumsum(counts)])
    members = np.arange(ends[-1]) + np.repeat(index.starts[:-1][rows] - ends[:-1], counts)
    extensions = pyarrow.array(list(index.extensions), pyarrow.string())
    sizes = index.sizes[members]
    keys = index.keys[rows].tolist()
    # a name that does not fit into a plain header takes another one
    extra = np.array([0 if len(k) <= 80 and k.isascii() else _LONG_NAME for k in keys], np.int64)
    ends_in_tar = np.concatenate([[0], np.cumsum(tar_bytes(sizes))])
    lists = pyarrow.array(ends, pyarrow.int32())
    path = os.path.abspath(index.path)
    return pyarrow.table(
        {
            "key": pyarrow.array(keys, pyarrow.string()),
            "shard": pyarrow.array([path] * len(rows), pyarrow.string()),
            "mtime_ns": np.full(len(rows), os.stat(path).st_mtime_ns),
            "bytes": ends_in_tar[ends[1:]] - ends_in_tar[ends[:-1]] + extra * counts,
            "extensions": pyarrow.ListArray.from_arrays(
                lists, extensions.take(pyarrow.array(index.member_extension[members]))
            ),
            "offsets": pyarrow.ListArray.from_arrays(lists, pyarrow.array(index.offsets[members])),
            "sizes": pyarrow.ListArray.from_arrays(lists, pyarrow.array(sizes)),
        }
    )


def _check_keys(keys: Sequence[str], spans: Sequence[tuple[int, int]]) -> None:
    for start, stop in spans:
        seen: set[str] = set()
        for key in keys[start:stop]:
            if key in seen:
                raise DataError(
                    f"two samples of one new shard would have the key '{key}'; "
                    f"give --new-keys to number them"
                )
            seen.add(key)
