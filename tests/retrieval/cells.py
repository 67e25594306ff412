"""What a rank runs in tests of retrieval."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.dist.group import World
from clipkit.retrieval.ranks import Side, rank_sides


def unit(rows: int, dim: int, seed: int) -> Tensor:
    """(rows, dim) unit rows."""
    g = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, dim, generator=g), dim=1)


def problem(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features with twins, and positives of which some queries and targets have none."""
    queries, targets = unit(37, 16, seed), unit(53, 16, seed + 100)
    targets[20:25] = targets[:5]
    queries[10:14] = queries[3]
    g = torch.Generator().manual_seed(seed)
    pairs = (torch.rand(37, 53, generator=g) < 0.03).nonzero()
    return queries, targets, pairs


def sides(world: World, seed: int, block: int) -> tuple[Side, Side | None]:
    """Both sides of a problem, the work shared by ranks."""
    return rank_sides(*problem(seed), world=world, block=block)
