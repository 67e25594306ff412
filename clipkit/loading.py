"""For people who only want the model: load() a checkpoint, export() it for open_clip.

Needs torch, open_clip and safetensors; neither deepspeed, wandb nor faiss.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from clipkit.checkpoint.files import flush, sha256, share, write_text
from clipkit.checkpoint.read import CheckpointReader
from clipkit.checkpoint.verify import MANIFEST, find_checkpoint, read_json
from clipkit.contracts import Batch, Outputs
from clipkit.errors import CheckpointError
from clipkit.towers.build import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    Towers,
    build_towers,
    load_open_clip_state,
)
from clipkit.towers.dual import DualEncoder, FeatureEncoder


def is_export(path: str | Path) -> bool:
    """Whether `path` is a folder in open_clip's layout, ours or another's."""
    return (Path(path) / CONFIG_NAME).is_file() and (Path(path) / WEIGHTS_NAME).is_file()


def load_towers(path: str | Path, nonscalar_logit_scale: bool = False) -> Towers:
    """Towers with the weights of a run folder, a checkpoint folder or an exported folder.

    Raises:
        CheckpointError: Nothing there, damaged, or weights that do not fit their config.
    """
    path = Path(path)
    if is_export(path):
        if (path / MANIFEST).is_file():
            find_checkpoint(path)
        config = read_json(path / CONFIG_NAME)
        try:
            state = safetensors.torch.load_file(path / WEIGHTS_NAME)
        except (OSError, safetensors.SafetensorError) as error:
            raise CheckpointError(f"{path / WEIGHTS_NAME}: cannot be read: {error}") from None
        source = str(path)
    else:
        reader = CheckpointReader(find_checkpoint(path))
        config, state, source = reader.config, reader.towers_state(), str(reader.folder)
    if not isinstance(config, dict) or not isinstance(config.get("model_cfg"), dict):
        raise CheckpointError(f"{source}: {CONFIG_NAME} has no model_cfg; export it again")
    towers = build_towers(
        config["model_cfg"],
        preprocess_cfg=config.get("preprocess_cfg"),
        nonscalar_logit_scale=nonscalar_logit_scale,
    )
    load_open_clip_state(towers.clip, state, source)
    towers.clip.eval()
    return towers


def load(
    path: str | Path, *, device: str | torch.device = "cpu"
) -> tuple[nn.Module, Callable[[Any], Tensor], Callable[[list[str]], Tensor]]:
    """Load a trained model for use.

    Args:
        path: A run folder, a checkpoint folder inside it, or an exported folder.
        device: Where the model goes.

    Returns:
        (model, preprocess, tokenizer): an open_clip model in eval mode with `encode_image` and
        `encode_text`, a PIL image -> (3, H, W) transform, and list of str -> (n, L) tokens.

    Raises:
        CheckpointError: Nothing there, or damaged; names the file.
    """
    towers = load_towers(path)
    return towers.clip.to(device), towers.preprocess, towers.tokenizer


def load_encoder(path: str | Path, *, device: torch.device | None = None) -> FeatureEncoder:
    """The model as evaluation wants it."""
    device = device or torch.device("cpu")
    towers = load_towers(path, nonscalar_logit_scale=True)
    model = DualEncoder(towers.clip, mean=towers.mean, std=towers.std).to(device).eval()

    @torch.no_grad()
    def forward(batch: Batch) -> Outputs:
        return model(batch)

    return FeatureEncoder(forward, towers.preprocess, towers.tokenizer, device)


def export(checkpoint: str | Path, out: str | Path) -> Path:
    """Write a checkpoint in open_clip's layout.

    Read it with `open_clip.create_model_and_transforms("local-dir:OUT")`.

    Args:
        checkpoint: A run folder or a checkpoint folder.
        out: A new or empty folder.

    Returns:
        `out`.

    Raises:
        CheckpointError: The checkpoint is damaged, or `out` already holds files.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out} already exists and is not empty; export into a new folder")
    reader = CheckpointReader(find_checkpoint(checkpoint))
    state = reader.towers_state()
    out.mkdir(parents=True, exist_ok=True)
    weights = out / WEIGHTS_NAME
    safetensors.torch.save_file(
        {k: v.contiguous() for k, v in state.items()}, weights, {"format": "pt"}
    )
    share(weights)
    flush(weights)
    write_text(out / CONFIG_NAME, json.dumps(reader.config, indent=1))
    files = {
        p.name: {"bytes": p.stat().st_size, "sha256": sha256(p)}
        for p in (weights, out / CONFIG_NAME)
    }
    write_text(out / MANIFEST, json.dumps({"format": "clipkit-1", "files": files}, indent=1))
    return out
