"""What a rank runs in the losses' contract tests."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.config.parts import build_part
from clipkit.contracts import Features, Pair, Tiling
from clipkit.dist.group import World

B, M, D = 12, 3, 8


def global_tensors(seed: int = 0) -> dict[str, Tensor]:
    """Unit float64 rows of a global batch: image, text, negative (M each), the negatives' mask."""
    g = torch.Generator().manual_seed(seed)

    def unit(*shape: int) -> Tensor:
        return F.normalize(torch.randn(shape, generator=g, dtype=torch.float64), dim=-1)

    return {
        "image": unit(B, 1, D),
        "text": unit(B, 1, D),
        "negative": unit(B, M, D),
        "mask": torch.rand((B, M), generator=g) < 0.6,
    }


def features_of(tensors: dict[str, Tensor], world: World, with_columns: bool) -> Features:
    """This rank's rows as leaves."""
    local = B // world.world_size
    rows = slice(world.rank * local, (world.rank + 1) * local)
    names = ["image", "text"] + ["negative"] * with_columns
    leaves = {n: tensors[n][rows].clone().requires_grad_() for n in names}
    masks = {"negative": tensors["mask"][rows]} if with_columns else {}
    scale = torch.tensor(9.0, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(-1.5, dtype=torch.float64, requires_grad=True)
    return Features(
        leaves,
        scale,
        bias,
        masks=masks,
        ids=torch.arange(B)[rows],
        rank=world.rank,
        world_size=world.world_size,
    )


def run_loss(
    world: World, kind: str, with_columns: bool, plan: Literal["auto", "rs", "lse"] = "auto"
) -> dict[str, Any]:
    """Loss and gradients of this rank, leaf gradients included."""
    features = features_of(global_tensors(), world, with_columns)
    features.tiling = Tiling(plan=plan)
    pair = Pair(columns=("negative",) if with_columns else ())
    value = sum(build_part("losses", {"kind": kind})(features, pair).values())
    value.backward()
    zero = torch.zeros((), dtype=torch.float64)
    return {
        "loss": value.detach(),
        "gradients": {n: t.grad for n, t in features.embeddings.items()},
        "scale": zero if features.logit_scale.grad is None else features.logit_scale.grad,
        "bias": zero if features.logit_bias.grad is None else features.logit_bias.grad,
    }
