"""torch's AdamW over the groups of `groups.py`.

Runs under every strategy and ZeRO stage, compiles nothing.
"""

from __future__ import annotations

import torch
from torch import nn

from clipkit.optim.groups import build_groups


def build_adamw(
    model: nn.Module, *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW, Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101.

    Fused: one pass over memory.
    """
    return torch.optim.AdamW(
        build_groups(model, weight_decay), lr=lr, betas=betas, eps=eps, fused=True
    )
