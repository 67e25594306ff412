"""Which parameters are decayed: matrices; not norms, biases, logit_scale and other vectors."""

from __future__ import annotations

from typing import Any

from torch import nn


def build_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups "decay" and "no_decay", in the model's order; frozen parameters are left out."""
    decay: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_plain = parameter.ndim < 2 or name.endswith(("bias", "logit_scale", "logit_bias"))
            (plain if is_plain else decay).append(parameter)
    groups = [
        {"name": "decay", "params": decay, "weight_decay": weight_decay},
        {"name": "no_decay", "params": plain, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
