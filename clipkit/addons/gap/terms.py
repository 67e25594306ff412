"""Alignment and uniformity of the global batch, Wang & Isola 2020,
https://arxiv.org/abs/2005.10242; across modalities, Fahim et al. 2024,
https://arxiv.org/abs/2405.18570.

On unit rows |x - y|^2 = 2 - 2 cos, so exp(-t |x - y|^2) is exp(2t cos) but for a constant factor:
its sums are those over negatives at the fixed logit scale 2t, which `losses/tiled.py` gives by
tiles, over ranks and with gradient. Logarithms are float64.

Shapes: b rows of this rank, B global batch, D embed dim.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from clipkit.contracts import Features, Pair
from clipkit.losses.tiled import negatives


@dataclass(frozen=True)
class Kernel:
    """How pairs repel each other.

    Attributes:
        t: Sharpness of exp(-t |x - y|^2).
        include_self: Sum over pairs of a row with itself too, and divide by B.
        mask_duplicates: Samples with equal id or caption are no pair.
    """

    t: float = 2.0
    include_self: bool = False
    mask_duplicates: bool = False


def uniformity(features: Features, one: str, other: str, kernel: Kernel) -> Tensor:
    """Log of the mean kernel over pairs of different samples of the global batch.

    Perfectly uniform rows have -2t + log 0F1(; D/2; t^2), coinciding ones 0.

    Args:
        features: Of this rank.
        one: Name of embeddings, one a sample.
        other: The same name, or that of the other modality.
        kernel: With `include_self` the sum is divided by B instead of the number of pairs, and B
            pairs of a row with itself, 1 each, belong to it where the names are the same.

    Returns:
        () float64, the same on every rank; 0 where there is no pair.
    """
    scale = torch.full((), 2 * kernel.t, dtype=torch.float64, device=features.logit_scale.device)
    scaled = replace(features, logit_scale=scale, logit_bias=None)
    found = negatives(scaled, Pair(one, other), mask_duplicates=kernel.mask_duplicates)
    own = (found.by_image[0] - scale).exp().sum()
    total, pairs = features.sum(torch.stack([own, found.num_by_image.sum().double()]))
    if kernel.include_self:
        pairs = torch.full_like(pairs, features.num_rows * features.world_size)
        total = total + pairs if one == other else total
    return torch.log(total / pairs) if float(total.detach()) > 0 else total


def alignment(features: Features) -> Tensor:
    """Mean of |image - text|^2 over this rank's pairs, () float64: 2 - 2 * their mean cosine."""
    image, text = features.local("image").double(), features.local("text").double()  # (b, 1, D)
    return 2 - 2 * (image * text).sum(dim=-1).mean()
