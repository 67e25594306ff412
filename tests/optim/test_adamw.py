"""AdamW against its formula."""

import torch
from torch import nn

from clipkit.optim.adamw import build_adamw


def test_one_and_two_steps_match_the_formula():
    model = nn.Linear(3, 2).double()
    weight, bias = model.weight.detach().clone(), model.bias.detach().clone()
    lr, betas, eps, decay = 0.1, (0.9, 0.98), 1e-6, 0.5
    optimizer = build_adamw(model, lr=lr, betas=betas, eps=eps, weight_decay=decay)
    first = second = 0.0
    first_b = second_b = 0.0
    for step in (1, 2):
        grad, grad_b = torch.randn(2, 3).double(), torch.randn(2).double()
        model.weight.grad, model.bias.grad = grad.clone(), grad_b.clone()
        optimizer.step()
        for kind in ("weight", "bias"):
            g = grad if kind == "weight" else grad_b
            m = (first if kind == "weight" else first_b) * betas[0] + (1 - betas[0]) * g
            v = (second if kind == "weight" else second_b) * betas[1] + (1 - betas[1]) * g**2
            update = lr * (m / (1 - betas[0] ** step)) / ((v / (1 - betas[1] ** step)).sqrt() + eps)
            if kind == "weight":
                first, second = m, v
                weight = weight * (1 - lr * decay) - update
            else:
                first_b, second_b = m, v
                bias = bias - update  # never decayed
    assert torch.allclose(model.weight, weight, atol=1e-12)
    assert torch.allclose(model.bias, bias, atol=1e-12)


def test_settings_reach_every_group():
    optimizer = build_adamw(nn.Linear(2, 2), lr=0.3, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.1)
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (0.3, (0.8, 0.9), 1e-3)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.0]
