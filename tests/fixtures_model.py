"""The smallest architecture whose text tower takes real tokens, as model_cfg and as a json file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ARCH: dict[str, Any] = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 8, "patch_size": 4, "width": 16, "layers": 1, "head_width": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}


def write_arch(folder: Path, name: str = "arch.json") -> Path:
    """The architecture as `model.arch` takes it."""
    path = folder / name
    path.write_text(json.dumps(ARCH))
    return path
