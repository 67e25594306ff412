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
from clipkit.towers.arch import read_arch
from clipkit.towers.build import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    Towers,
    build_towers,
    download_tag,
    load_open_clip_state,
    load_pretrained,
    pretrained_preprocess,
)
from clipkit.towers.dual import DualEncoder, FeatureEncoder
from clipkit.towers.identity import facts_hash, weights_hash


def is_export(path: str | Path) -> bool:
    """Whether `path` is a folder in open_clip's layout, ours or another's."""
    return (Path(path) / CONFIG_NAME).is_file() and (Path(path) / WEIGHTS_NAME).is_file()


def resolve(path: str | Path, arch: str | None = None) -> Path:
    """The checkpoint that a run folder stands for now, else the path itself.

    Raises:
        CheckpointError: Nothing there, or a folder without a valid checkpoint.
    """
    path = Path(path)
    if arch is not None and not path.exists():
        return path  # a pretrained tag
    if path.is_file() or is_export(path) or (path / MANIFEST).is_file():
        return path.resolve()
    return find_checkpoint(path).resolve()


def load_towers(
    path: str | Path, nonscalar_logit_scale: bool = False, arch: str | None = None
) -> Towers:
    """Towers with the weights of a run folder, a checkpoint folder or an exported folder.

    With `arch`, an open_clip architecture, `path` may also be a weights file of open_clip's (.pt or
    .safetensors) or one of its pretrained tags.

    Raises:
        CheckpointError: Nothing there, damaged, or weights that do not fit their config.
        ConfigError: Unknown architecture or tag, or a tag that cannot be fetched.
    """
    path = Path(path)
    if arch is not None or path.is_file():
        return _load_weights_file(path, nonscalar_logit_scale, arch)
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


def _load_weights_file(path: Path, nonscalar_logit_scale: bool, arch: str | None) -> Towers:
    """Towers of a named architecture with open_clip's weights, from a file or by a tag."""
    if arch is None:
        raise CheckpointError(f"{path} is a weights file; name its architecture (--arch ViT-B-32)")
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder and knows its architecture; leave --arch out")
    preprocess: dict[str, Any] = {}
    file = str(path)
    if not path.is_file():
        file, preprocess = download_tag(arch, str(path)), pretrained_preprocess(arch, str(path))
    towers = build_towers(
        read_arch(arch), preprocess_cfg=preprocess, nonscalar_logit_scale=nonscalar_logit_scale
    )
    load_pretrained(towers.clip, file)
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


def load_encoder(
    path: str | Path,
    *,
    device: torch.device | None = None,
    arch: str | None = None,
    precision: str = "fp32",
) -> FeatureEncoder:
    """The model as evaluation wants it, with the hashes its features are stored under.

    Args:
        path: As in `load_towers`.
        device: Where it goes.
        arch: As in `load_towers`.
        precision: "fp32", or "bf16" for autocast inside the towers; features are fp32 either way.
    """
    device = device or torch.device("cpu")
    towers = load_towers(path, nonscalar_logit_scale=True, arch=arch)
    autocast = torch.bfloat16 if precision == "bf16" else None
    model = DualEncoder(towers.clip, mean=towers.mean, std=towers.std, autocast=autocast)
    model.to(device).eval()

    @torch.no_grad()
    def forward(batch: Batch) -> Outputs:
        return model(batch)

    return FeatureEncoder(
        forward,
        towers.preprocess,
        towers.tokenizer,
        device,
        weights_hash=weights_hash(towers),
        transform_hash=facts_hash(towers.config["preprocess_cfg"]),
        tokenizer_hash=facts_hash(towers.config["model_cfg"]["text_cfg"]),
        precision=precision,
    )


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
