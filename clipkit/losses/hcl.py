"""Debiased contrastive learning with hard negatives, Robinson et al., ICLR 2021,
https://arxiv.org/abs/2010.04592, per direction with the cross-modal negatives.

Shapes: b rows of this rank, B global batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from clipkit.contracts import Features, Pair
from clipkit.errors import ConfigError
from clipkit.losses.tiled import Channel, negatives, softplus


class HCLLoss(nn.Module):
    """InfoNCE with negatives weighted by exp(beta * logit) and corrected for false negatives.

    Use it when: hard negatives matter and captions repeat across samples. See also: LLaVELoss.
    beta = 0 with tau_plus = 0 is InfoNCE.

    Args:
        beta: Concentration on hard negatives, >= 0.
        tau_plus: Assumed share of positives among the negatives, 0 <= tau_plus < 1.
        mask_duplicates: Samples with equal id or caption are no negatives of each other.
    """

    def __init__(
        self, *, beta: float = 1.0, tau_plus: float = 0.1, mask_duplicates: bool = False
    ) -> None:
        super().__init__()
        if beta < 0:
            raise ConfigError(f"loss.beta={beta}: choose a value >= 0")
        if not 0 <= tau_plus < 1:
            raise ConfigError(f"loss.tau_plus={tau_plus}: choose 0 <= value < 1")
        self.beta, self.tau_plus, self.mask_duplicates = beta, tau_plus, mask_duplicates

    def forward(self, features: Features, pair: Pair) -> dict[str, Tensor]:
        """Return {"contrastive": ()}, the mean over this rank's rows of both directions."""
        channels = [Channel(1 + self.beta), Channel(self.beta)]
        found = negatives(features, pair, channels=channels, mask_duplicates=self.mask_duplicates)
        positive = features.logit_scale * found.cosine  # (b,)
        by_image = self._direction(
            found.by_image, found.num_by_image, positive, features.logit_scale
        )
        by_text = self._direction(found.by_text, found.num_by_text, positive, features.logit_scale)
        loss = (by_image + by_text).mean() / 2
        return {"contrastive": loss.to(features.logit_scale.dtype)}

    def _direction(self, sums: Tensor, counts: Tensor, positive: Tensor, scale: Tensor) -> Tensor:
        """(b,) -log(p / (p + Ng)), all in logarithms: Ng overflows at CLIP's temperatures."""
        some = counts > 0
        hard, norm = torch.where(some, sums, 0.0)  # (b,) each
        log_count = counts.clamp(min=1).double().log()
        reweighted = hard - norm  # log of the mean weighted negative
        if self.tau_plus:
            false = math.log(self.tau_plus) + positive
            above = reweighted > false  # else the correction leaves nothing
            gap = torch.where(above, false - reweighted, -1.0)
            corrected = reweighted + torch.log1p(-gap.exp())
            corrected = torch.where(above, corrected, -torch.inf)
            reweighted = torch.maximum(corrected - math.log1p(-self.tau_plus), -scale.double())
        else:
            reweighted = torch.maximum(reweighted, -scale.double())
        return torch.where(some, softplus(log_count + reweighted - positive), 0.0)


PART = HCLLoss
