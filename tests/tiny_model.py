"""A dual encoder of 64 dimensions and a batch for it: what most engine tests train."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from clipkit.contracts import Batch
from clipkit.towers.build import build_towers
from clipkit.towers.dual import DualEncoder

MODEL_CFG: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 4, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 2},
}


def tiny_model(
    *,
    seed: int = 0,
    dropout: float = 0.0,
    patch_dropout: float | None = None,
    bias: float | None = None,
    dtype: torch.dtype = torch.float32,
    autocast: torch.dtype | None = None,
    heads: dict[str, nn.Module] | None = None,
) -> DualEncoder:
    """Random weights that depend on `seed` only."""
    torch.manual_seed(seed)
    config = {**MODEL_CFG, "init_logit_bias": bias}
    towers = build_towers(config, patch_dropout=patch_dropout)
    model = DualEncoder(
        towers.clip, mean=towers.mean, std=towers.std, autocast=autocast, heads=heads
    )
    if dropout:
        model.towers.ln_final = nn.Sequential(model.towers.ln_final, nn.Dropout(dropout))
        model.towers.visual.ln_post = nn.Sequential(
            model.towers.visual.ln_post, nn.Dropout(dropout)
        )
    return model.to(dtype).train()


def tiny_batch(size: int, *, seed: int = 1, negatives: int = 0) -> Batch:
    """`size` samples of noise and random tokens; with `negatives`, "negative" texts and a mask."""
    g = torch.Generator().manual_seed(seed)
    texts = {"text": torch.randint(1, 64, (size, 1, 8), generator=g)}
    masks = {}
    if negatives:
        texts["negative"] = torch.randint(1, 64, (size, negatives, 8), generator=g)
        masks["negative"] = torch.rand((size, negatives), generator=g) < 0.7
    images = {"image": torch.randint(0, 256, (size, 3, 16, 16), generator=g, dtype=torch.uint8)}
    return Batch(images, texts, torch.arange(size), masks)
