"""Members judged by their names alone; what is not on the list of allowed ones is never opened."""

from __future__ import annotations

from collections import Counter

import numpy as np

from clipkit.data.tar_index import TarIndex
from clipkit.data.tar_scan import Scan, is_unsafe
from data_tools.validate.sample import Note

# Readers that decode by name run code that such a file holds.
_DANGEROUS = ("pyd", "pkl", "pickle", "pt", "pth", "ckpt", "joblib", "dill")


def member_notes(scan: Scan, index: TarIndex, allowed: tuple[str, ...]) -> list[Note]:
    """What the names of a shard's members tell: one note each, unknown extensions one per kind."""
    notes = []
    unknown: Counter[str] = Counter()
    first: dict[str, tuple[int, str]] = {}
    for (row, key), name in zip(_places(scan, index), scan.names):
        extension = name.rpartition("/")[2].partition(".")[2].lower()
        if is_unsafe(name):
            notes.append(Note(row, key, "unsafe_name", name))
        if extension.rpartition(".")[2] in _DANGEROUS:
            notes.append(Note(row, key, "dangerous_member", name))
        elif row < 0:
            torn = extension and not name.rpartition("/")[2].startswith(".")
            notes.append(Note(row, key, "torn_sample" if torn else "stray_member", name))
        elif extension not in allowed:
            unknown[extension] += 1
            first.setdefault(extension, (row, key))
    for extension, count in unknown.items():
        notes.append(Note(*first[extension], "unknown_member", f"{count} x .{extension}"))
    return notes


def _places(scan: Scan, index: TarIndex) -> list[tuple[int, str]]:
    """(row, key) of each member that was found; (-1, "") where no sample has it."""
    offsets = np.asarray(scan.offsets, dtype=np.int64)
    members = np.searchsorted(index.offsets, offsets)
    known = np.zeros(len(offsets), dtype=bool)
    inside = members < len(index.offsets)
    known[inside] = index.offsets[members[inside]] == offsets[inside]
    rows = np.where(known, np.searchsorted(index.starts, members, side="right") - 1, -1)
    return [(row, str(index.keys[row]) if row >= 0 else "") for row in rows.tolist()]
