"""Trained heads beside an export: the part of a checkpoint that open_clip has no place for.

An export with heads is a checkpoint of the heads alone: index.json, state.json and one safetensors
file, which `CheckpointReader` reads and the manifest covers.
"""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch

from clipkit.checkpoint.files import flush, share, write_text
from clipkit.checkpoint.read import CheckpointReader

_FILE = "heads.safetensors"
_PREFIX = "heads."


def write_heads(reader: CheckpointReader, out: Path) -> list[Path]:
    """Copy a checkpoint's heads, and what the add-ons say of them, into a folder.

    Returns:
        The files written; none where there are no heads.
    """
    names = [(k, n) for k in ("weight", "buffer") for n in reader.names(k) if n.startswith(_PREFIX)]
    if not names:
        return []
    tensors = {f"{kind}/{name}": reader.read(kind, name) for kind, name in names}
    safetensors.torch.save_file(tensors, out / _FILE, {"format": "pt"})
    share(out / _FILE)
    flush(out / _FILE)
    index = {}
    for kind, name in names:
        key = f"{kind}/{name}"
        piece = {"file": _FILE, "key": key, "start": 0, "stop": len(tensors[key])}
        index[key] = {"shape": reader.shape(kind, name), "slices": [piece]}
    write_text(out / "index.json", json.dumps(index, indent=1))
    write_text(out / "state.json", json.dumps({"addons": reader.state.get("addons", [])}, indent=1))
    return [out / _FILE, out / "index.json", out / "state.json"]


def heads_reader(folder: Path) -> CheckpointReader | None:
    """Reader of a checkpoint's or an export's heads; None for an export without.

    Raises:
        CheckpointError: A file is damaged.
    """
    return CheckpointReader(folder) if (folder / "index.json").is_file() else None
