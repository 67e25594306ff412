"""One shard: its rejects, its notes and, if asked for, a clean copy."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow

from clipkit.data.bad_samples import BadSample
from clipkit.data.shard_reader import iter_samples
from clipkit.data.sources import ShardSource
from clipkit.data.tar_index import TarIndex, load_index
from clipkit.data.tar_scan import Scan, is_unsafe, scan_tar
from clipkit.errors import DataError
from data_tools.tables import table_path, write_table
from data_tools.validate.names import member_notes
from data_tools.validate.sample import PLAIN, Note, Rules, judge


def check_shard(
    shard: str, out: Path, *, root: str, rules: dict[str, Any], repair: str
) -> dict[str, Any]:
    """Judge every sample of a shard.

    Writes OUT/rejects/<shard>.parquet, OUT/problems/<shard>.parquet and, with `repair`, the usable
    samples to `repair`/<shard>.

    Args:
        shard: Its path.
        out: Folder of the tables.
        root: Folder that the shards' names start from.
        rules: Arguments of Rules.
        repair: Folder of clean shards; "" for none.

    Returns:
        samples, good, rejects and notes (counts by cause and kind), damage, missing (samples known
        to be lost), repaired (sha256, or "") and outputs.

    Raises:
        DataError: The shard cannot be read, or something cannot be written.
    """
    name = os.path.relpath(os.path.abspath(shard), root).replace(os.sep, "/")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in rules.items()}
    rule = Rules(**values)
    index = load_index(shard)
    try:
        scan = scan_tar(shard)
    except OSError as error:
        raise DataError(f"shard '{shard}' cannot be read: {error.strerror}") from None
    missing = sum(count for _, _, count in ShardSource([shard]).lost)
    notes = [*_shard_notes(index, scan, missing), *member_notes(scan, index, rule.allowed)]
    rejects: list[Note] = []
    good = _good_samples(index, rule, rejects, notes)
    if repair:
        usable, copy = _write_copy(Path(repair) / name, good)
    else:
        usable, copy = sum(1 for _ in good), ""
    tables = {"rejects": rejects, "problems": [note for note in notes if note.kind not in PLAIN]}
    for folder, lines in tables.items():
        _write_lines(table_path(out / folder, name), name, lines)
    return {
        "samples": len(index),
        "good": usable,
        "rejects": dict(Counter(line.kind for line in rejects)),
        "notes": dict(Counter(line.kind for line in notes)),
        "damage": scan.damage,
        "missing": missing,
        "repaired": copy,
        "outputs": [
            *(str(table_path(Path(folder), name)) for folder in tables),
            *([str(Path(repair).absolute() / name)] if copy else []),
        ],
    }


def _good_samples(
    index: TarIndex, rules: Rules, rejects: list[Note], notes: list[Note]
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, members) of the usable samples; fills in `rejects` and `notes`."""
    seen: set[str] = set()
    for sample in iter_samples(index, rules.allowed, rules.max_bytes):
        try:
            if is_unsafe(sample.key):
                raise BadSample("unsafe_name")
            if sample.key in seen:
                raise BadSample("duplicate_key")
            seen.add(sample.key)
            members, odd = judge(sample, rules)
        except BadSample as error:
            detail = str(error) if str(error) != error.cause else ""
            rejects.append(Note(sample.row, sample.key, error.cause, detail))
            continue
        notes.extend(odd)
        yield sample.key, members


def _write_copy(path: Path, samples: Iterator[tuple[str, dict[str, bytes]]]) -> tuple[int, str]:
    """(samples, sha256) of the shard written; none, and no file, where there are no samples."""
    from clipkit.data.shard_writer import write_shard  # brings torch, for the workers alone

    facts = write_shard(path, samples)
    if not facts.samples:
        path.unlink()  # an empty tar would be taken for a damaged one
        return 0, ""
    return facts.samples, facts.sha256


def _shard_notes(index: TarIndex, scan: Scan, missing: int) -> list[Note]:
    """What is wrong with the tar as a whole; row -1."""
    notes = []
    if scan.damage:
        notes.append(Note(-1, "", "damaged", scan.damage))
    elif not scan.end_mark:
        notes.append(Note(-1, "", "no_end_mark"))
    if missing:
        notes.append(Note(-1, "", "missing_samples", str(missing)))
    gone = int((~np.isin(index.offsets, scan.offsets)).sum())
    if gone:  # the headers were damaged behind the index's back, the contents may be whole
        notes.append(Note(-1, "", "known_by_index_only", f"{gone} members"))
    return notes


def _write_lines(path: Path, shard: str, lines: list[Note]) -> None:
    columns = {
        "shard": pyarrow.array([_text(shard)] * len(lines), pyarrow.string()),
        "row": pyarrow.array([line.row for line in lines], pyarrow.int64()),
        "key": pyarrow.array([_text(line.key) for line in lines], pyarrow.string()),
        "cause": pyarrow.array([line.kind for line in lines], pyarrow.string()),
        "detail": pyarrow.array([_text(line.detail) for line in lines], pyarrow.string()),
    }
    write_table(path, columns)


def _text(value: str) -> str:
    return value.encode("utf-8", "replace").decode()[:500]
