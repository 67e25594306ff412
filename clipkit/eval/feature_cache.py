"""Features on disk, in parts, under a key that names everything they depend on.

A part is a safetensors file that carries the sha256 of its rows; a damaged or half-written one is
computed again. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from clipkit.data.content_hash import cache_root


def default_folder() -> Path:
    """Below $CLIPKIT_CACHE, else the user's cache folder."""
    return cache_root() / "features"


def digest(**facts: str) -> str:
    """Key of a set of facts: 32 hex digits."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


class FeatureCache:
    """Parts of feature matrices.

    Args:
        root: Folder; made when the first part is written.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def read(self, facts: dict[str, str], part: int, rows: int) -> Tensor | None:
        """(rows, D) fp32, or None where the part is missing, damaged or of another length."""
        path = self._path(facts, part)
        try:
            with safe_open(path, framework="pt") as file:
                features = file.get_tensor("features")
                whole = file.metadata()["sha256"] == _checksum(features)
        except (OSError, SafetensorError, KeyError, TypeError):
            return None
        return features if whole and len(features) == rows else None

    def write(self, facts: dict[str, str], part: int, features: Tensor) -> None:
        """Store (rows, D) fp32 in one move; a full disk costs the cache, nothing else."""
        path = self._path(facts, part)
        temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            note = path.parent / "key.json"
            if not note.exists():
                note.write_text(json.dumps(facts, indent=1))
            safetensors.torch.save_file(
                {"features": features.contiguous()}, temporary, {"sha256": _checksum(features)}
            )
            os.replace(temporary, path)
        except (OSError, SafetensorError):
            with suppress(OSError):
                temporary.unlink()

    def _path(self, facts: dict[str, str], part: int) -> Path:
        key = digest(**facts)
        return self.root / key[:2] / key / f"part-{part:05d}.safetensors"


def _checksum(features: Tensor) -> str:
    rows = features.detach().to(torch.float32).contiguous().numpy()
    return hashlib.sha256(rows.tobytes()).hexdigest()
