"""Gather and sum, forwards and backwards, on 2 ranks."""

from __future__ import annotations

from typing import Any

import torch

from clipkit.dist.collectives import gather_rows, sum_over_ranks
from clipkit.dist.group import World


def gather_and_sum(world: World) -> dict[str, Any]:
    """Every rank weighs all gathered rows by its own number; the gradient must add both."""
    x = torch.arange(4.0, dtype=torch.float64).reshape(2, 2) + 10 * world.rank
    x.requires_grad_()
    everyone = gather_rows(x, world.world_size)
    (everyone * (world.rank + 1)).sum().backward()
    y = torch.tensor([1.0 + world.rank], requires_grad=True)
    total = sum_over_ranks(y, world.world_size)
    (total * (world.rank + 1)).sum().backward()
    return {"rows": everyone.detach(), "grad": x.grad, "sum": total.item(), "sum_grad": y.grad.item()}


def test_gather_adds_gradients_over_ranks(ranks) -> None:  # type: ignore[no-untyped-def]
    for answer in ranks(2).run(gather_and_sum):
        assert answer["rows"].tolist() == [[0, 1], [2, 3], [10, 11], [12, 13]]
        assert answer["grad"].tolist() == [[3, 3], [3, 3]]
        assert answer["sum"] == 3 and answer["sum_grad"] == 3


def test_alone_nothing_happens() -> None:
    x = torch.ones(3, requires_grad=True)
    assert gather_rows(x, 1) is x and sum_over_ranks(x, 1) is x
