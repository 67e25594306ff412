"""Collectives with gradients: what one rank reads from all, all give back.

Convention (design of the step): every rank returns a value whose average over ranks is the loss of
the global batch, and parameter gradients are averaged over ranks. Hence both backwards here *add*
over ranks. The plain ones, without gradient, serve kernels that own their backward.
Shapes: b rows of this rank, N ranks, B = b * N.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as torch_dist
from torch import Tensor


def all_gather(x: Tensor, world_size: int) -> Tensor:
    """Rows of all ranks in rank order, (n, ...) -> (N * n, ...), without gradient. n must be equal."""
    if world_size == 1:
        return x
    out = x.new_empty((x.shape[0] * world_size, *x.shape[1:]))
    torch_dist.all_gather_into_tensor(out, x.contiguous())
    return out


def all_reduce(x: Tensor, world_size: int) -> Tensor:
    """Elementwise sum over ranks, without gradient; x is not changed."""
    if world_size == 1:
        return x
    out = x.clone()
    torch_dist.all_reduce(out)
    return out


def all_reduce_max(x: Tensor, world_size: int) -> Tensor:
    """Elementwise maximum over ranks, without gradient; x is not changed."""
    if world_size == 1:
        return x
    out = x.clone()
    torch_dist.all_reduce(out, op=torch_dist.ReduceOp.MAX)
    return out


def reduce_scatter(x: Tensor, world_size: int, rank: int) -> Tensor:
    """This rank's rows of the sum over ranks, (N * n, ...) -> (n, ...), without gradient."""
    if world_size == 1:
        return x
    rows = x.shape[0] // world_size
    if torch_dist.get_backend() == "gloo":
        return all_reduce(x, world_size)[rank * rows : (rank + 1) * rows].clone()
    out = x.new_empty((rows, *x.shape[1:]))
    torch_dist.reduce_scatter_tensor(out, x.contiguous())
    return out


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return all_gather(x, torch_dist.get_world_size())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return reduce_scatter(grad, torch_dist.get_world_size(), torch_dist.get_rank())


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return all_reduce(x, torch_dist.get_world_size())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return all_reduce(grad, torch_dist.get_world_size())


def gather_rows(x: Tensor, world_size: int) -> Tensor:
    """Rows of all ranks in rank order, (b, ...) -> (B, ...); backward adds over ranks. b must be equal."""
    return _GatherRows.apply(x) if world_size > 1 else x


def sum_over_ranks(x: Tensor, world_size: int) -> Tensor:
    """Elementwise sum over ranks; backward adds over ranks."""
    return _SumOverRanks.apply(x) if world_size > 1 else x
