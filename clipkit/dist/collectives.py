"""Collectives with gradients: what one rank reads from all, all give back.

Convention (design of the step): every rank returns a value whose average over ranks is the loss of
the global batch, and parameter gradients are averaged over ranks. Hence both backwards here *add*
over ranks. Shapes: b rows of this rank, B = b * world_size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as torch_dist
from torch import Tensor


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = x.shape[0]
        out = x.new_empty((x.shape[0] * torch_dist.get_world_size(), *x.shape[1:]))  # (B, ...)
        torch_dist.all_gather_into_tensor(out, x.contiguous())
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        if torch_dist.get_backend() == "gloo":
            grad = grad.clone()
            torch_dist.all_reduce(grad)
            start = torch_dist.get_rank() * ctx.rows
            return grad[start : start + ctx.rows]
        out = grad.new_empty((ctx.rows, *grad.shape[1:]))
        torch_dist.reduce_scatter_tensor(out, grad)
        return out


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = x.clone()
        torch_dist.all_reduce(out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.clone()
        torch_dist.all_reduce(grad)
        return grad


def gather_rows(x: Tensor, world_size: int) -> Tensor:
    """Rows of all ranks in rank order, (b, ...) -> (B, ...); backward adds over ranks. b must be equal."""
    return _GatherRows.apply(x) if world_size > 1 else x


def sum_over_ranks(x: Tensor, world_size: int) -> Tensor:
    """Elementwise sum over ranks; backward adds over ranks."""
    return _SumOverRanks.apply(x) if world_size > 1 else x
