"""Global batches for the gap terms, and the terms once more as full matrices by their formulas."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.addons.gap import GapClosing
from clipkit.contracts import Features, Tiling
from clipkit.dist.group import World

SIZE, DIM = 12, 5
ALL: dict[str, Any] = {"uniformity": 0.7, "xuniformity": 0.4, "alignment": 1.3}


def unit(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random unit rows, uniform on the sphere."""
    g = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(shape, generator=g, dtype=torch.float64), dim=-1).to(dtype)


def sides(size: int = SIZE, dim: int = DIM, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(B, D) images, and texts of another cone."""
    texts = unit(size, dim, seed=seed + 1) + 0.5
    return unit(size, dim, seed=seed), F.normalize(texts, dim=-1)


def duplicates(size: int = SIZE) -> tuple[Tensor, Tensor]:
    """(B,) ids and caption keys: the first and the last row share an id, 1 and 2 a caption."""
    ids, captions = torch.arange(size), torch.arange(100, 100 + size)
    if size > 3:
        ids[-1], captions[2] = ids[0], captions[1]
    return ids, captions


def features_of(
    image: Tensor, text: Tensor, world: World | None = None, tiling: Tiling | None = None
) -> Features:
    """This rank's rows."""
    world = world or World()
    local = len(image) // world.world_size
    rows = slice(world.rank * local, (world.rank + 1) * local)
    ids, captions = duplicates(len(image))
    return Features(
        {"image": image[rows, None], "text": text[rows, None]},
        torch.tensor(100.0, dtype=torch.float64),
        ids=ids[rows],
        rank=world.rank,
        world_size=world.world_size,
        text_keys={"text": captions[rows, None]},
        tiling=tiling or Tiling(),
    )


def loss_of(image: Tensor, text: Tensor, options: dict[str, Any], **where: Any) -> Tensor:
    """The sum of the add-on's terms."""
    terms = GapClosing(**options).loss_terms(features_of(image, text, **where))
    return torch.stack(list(terms.values())).sum()


def reference_uniformity(
    x: Tensor, y: Tensor, same: Tensor, t: float, include_self: bool, within: bool
) -> Tensor:
    """By the formula, over the full matrix; `same` (B, B) marks what is no pair."""
    kernel = torch.exp(-t * ((x[:, None] - y[None]) ** 2).sum(-1))  # (B, B)
    total = kernel[~same].sum()
    if include_self:
        return torch.log((total + (len(x) if within else 0)) / len(x))
    return torch.log(total / (~same).sum())


def reference_loss(image: Tensor, text: Tensor, options: dict[str, Any]) -> Tensor:
    """The add-on's loss, slowly."""
    eye = torch.eye(len(image), dtype=torch.bool)
    one_image = one_text = eye
    if options.get("mask_duplicates"):
        ids, captions = duplicates(len(image))
        one_image = ids[:, None] == ids
        one_text = one_image | (captions[:, None] == captions)
    t, include = options.get("t", 2.0), options.get("include_self", False)
    images = reference_uniformity(image, image, one_image, t, include, True)
    texts = reference_uniformity(text, text, one_text, t, include, True)
    cross = reference_uniformity(image, text, one_text, t, include, False)
    matched = ((image - text) ** 2).sum(-1).mean()
    weights = {name: options.get(name, 0.0) for name in ALL}
    return (
        weights["uniformity"] * (images + texts) / 2
        + weights["xuniformity"] * cross
        + weights["alignment"] * matched
    )


def with_gradients(loss: Any, image: Tensor, text: Tensor) -> tuple[float, Tensor, Tensor]:
    """(value, gradient at the images, at the texts)."""
    leaves = [x.clone().requires_grad_() for x in (image, text)]
    value = loss(*leaves)
    value.backward()
    assert leaves[0].grad is not None and leaves[1].grad is not None
    return value.item(), leaves[0].grad, leaves[1].grad


def rank_cell(
    world: World, options: dict[str, Any], plan: str = "auto"
) -> tuple[float, Tensor, Tensor]:
    """What a rank of the global batch finds; its gradients are zero outside its own rows' share."""
    tiling = Tiling(3, plan)  # type: ignore[arg-type]
    return with_gradients(lambda i, t: loss_of(i, t, options, world=world, tiling=tiling), *sides())


def perfectly_uniform(t: float, dim: int) -> float:
    """-2t + log 0F1(; D/2; t^2), by its power series."""
    term, total = 1.0, 1.0
    for k in range(200):
        term *= t * t / ((dim / 2 + k) * (k + 1))
        total += term
    return -2 * t + math.log(total)
