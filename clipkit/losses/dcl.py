"""Decoupled contrastive learning, Yeh et al., ECCV 2022, https://arxiv.org/abs/2110.06848.

Shapes: b rows of this rank, B global batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clipkit.contracts import Features, Pair
from clipkit.errors import ConfigError
from clipkit.losses.tiled import negatives


class DCLLoss(nn.Module):
    """InfoNCE without the positive in the denominator: logsumexp over the negatives - positive.

    Can be negative, and a learned temperature grows with it: keep `optim.max_logit_scale`. A sample
    without negatives counts 0. Use it when: batches are small. See also: InfoNCELoss.

    Args:
        weight_sigma: Weight positives by 2 - B * softmax(cosine / sigma) over the batch (DCLW,
            sigma = 0.5 in the paper, >= 0.01); null: all by 1.
        mask_duplicates: Samples with equal id or caption are no negatives of each other.
    """

    def __init__(self, *, weight_sigma: float | None = None, mask_duplicates: bool = False) -> None:
        super().__init__()
        if weight_sigma is not None and weight_sigma < 0.01:
            raise ConfigError(f"loss.weight_sigma={weight_sigma}: choose a value >= 0.01, or null")
        self.weight_sigma, self.mask_duplicates = weight_sigma, mask_duplicates

    def forward(self, features: Features, pair: Pair) -> dict[str, Tensor]:
        """Return {"contrastive": ()}, the mean over this rank's rows of both directions."""
        found = negatives(features, pair, mask_duplicates=self.mask_duplicates)
        positive = features.logit_scale * found.cosine  # (b,)
        if self.weight_sigma is not None:
            positive = positive * self._weights(found.cosine, features, self.weight_sigma)
        by_image = torch.where(found.num_by_image > 0, found.by_image[0] - positive, 0.0)
        by_text = torch.where(found.num_by_text > 0, found.by_text[0] - positive, 0.0)
        loss = (by_image + by_text).mean() / 2
        return {"contrastive": loss.to(features.logit_scale.dtype)}

    @staticmethod
    def _weights(cosine: Tensor, features: Features, sigma: float) -> Tensor:
        """(b,) that average 1 over the global batch."""
        mass = torch.exp((cosine - 1) / sigma)  # (b,)
        num_rows = features.num_rows * features.world_size
        return 2 - num_rows * mass / features.sum(mass.sum())


PART = DCLLoss
