"""A run folder as training leaves it, of the smallest architecture with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from clipkit.checkpoint.host_copy import Slice
from clipkit.dist.group import World
from clipkit.towers.build import build_towers
from tests.fixtures_checkpoint import write_checkpoint
from tests.fixtures_model import ARCH


def write_trained_run(
    run: Path,
    step: int = 3,
    *,
    seed: int = 0,
    heads: dict[str, nn.Module] | None = None,
    addons: list[dict[str, Any]] | None = None,
) -> dict[str, torch.Tensor]:
    """Write one checkpoint, with trained heads of add-ons; returns the towers' state dict."""
    torch.manual_seed(seed)
    towers = build_towers(ARCH)
    parameters = {n for n, _ in towers.clip.named_parameters()}
    state = towers.clip.state_dict()
    slices = [
        Slice(
            "weight" if n in parameters else "buffer", f"towers.{n}", tuple(t.shape), 0, t.flatten()
        )
        for n, t in state.items()
    ]
    for head, module in (heads or {}).items():
        for name, tensor in module.state_dict().items():
            name, shape = f"heads.{head}.{name}", tuple(tensor.shape)
            slices.append(Slice("weight", name, shape, 0, tensor.flatten()))
    state_file = {"step": step, "addons": addons or []}
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text("{}\n")
    write_checkpoint(
        run, step, slices=slices, state=state_file, model_config=towers.config, world=World()
    )
    return state
