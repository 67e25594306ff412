"""What names a model for ever: hashes of its architecture and weights."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from clipkit.towers.build import Towers


def weights_hash(towers: Towers) -> str:
    """Identity of architecture and weights: the same for a run, its checkpoint and its export."""
    return facts_hash({"arch": _architecture(towers), "state": _state_hash(towers)})


def _architecture(towers: Towers) -> dict[str, Any]:
    """What turns weights into a function, without how they were first set."""
    model_cfg: dict[str, Any] = towers.config["model_cfg"]
    return {k: v for k, v in model_cfg.items() if not k.startswith("init_")}


def _state_hash(towers: Towers) -> str:
    """Hash of the towers' named tensors."""

    def one(item: tuple[str, Tensor]) -> str:
        name, tensor = item
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest = hashlib.sha256(f"{name}|{tensor.dtype}|{tensor.numel()}|".encode())
        digest.update(flat.data)
        return digest.hexdigest()

    with ThreadPoolExecutor(max_workers=8) as pool:  # hashing leaves the interpreter lock
        parts = pool.map(one, sorted(towers.clip.state_dict().items()))
        return hashlib.sha256("".join(parts).encode()).hexdigest()


def facts_hash(facts: dict[str, Any]) -> str:
    """Hash of JSON-able facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
