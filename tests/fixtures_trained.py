"""A run folder as training leaves it, of the smallest architecture with random weights."""

from __future__ import annotations

from pathlib import Path

import torch

from clipkit.checkpoint.write import Slice, write_checkpoint
from clipkit.dist.group import World
from clipkit.towers.build import build_towers
from tests.fixtures_model import ARCH


def write_trained_run(run: Path, step: int = 3) -> dict[str, torch.Tensor]:
    """Write one checkpoint; returns the towers' state dict."""
    torch.manual_seed(0)
    towers = build_towers(ARCH)
    parameters = {n for n, _ in towers.clip.named_parameters()}
    state = towers.clip.state_dict()
    slices = [
        Slice(
            "weight" if n in parameters else "buffer", f"towers.{n}", tuple(t.shape), 0, t.flatten()
        )
        for n, t in state.items()
    ]
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text("{}\n")
    write_checkpoint(
        run, step, slices=slices, state={"step": step}, model_config=towers.config, world=World()
    )
    return state
