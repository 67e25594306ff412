"""Hardness-weighted contrastive loss of LLaVE, 2025, https://arxiv.org/abs/2503.04812.

Shapes: b rows of this rank, B global batch.
"""

from __future__ import annotations

from torch import Tensor, nn

from clipkit.contracts import Features, Pair
from clipkit.losses.infonce import InfoNCELoss
from clipkit.losses.tiled import Channel, negatives


class LLaVELoss(nn.Module):
    """InfoNCE whose negatives count exp(alpha * cosine) times; the weight is held constant.

    Use it when: most negatives are easy and the batch holds few duplicates, whose damage the weight
    amplifies. See also: HCLLoss. alpha = 0 is InfoNCE.

    Args:
        alpha: Strength; comparable with logit_scale, since it multiplies the cosine.
        mask_duplicates: Samples with equal id or caption are no negatives of each other.
    """

    def __init__(self, *, alpha: float = 0.5, mask_duplicates: bool = False) -> None:
        super().__init__()
        self.alpha, self.mask_duplicates = alpha, mask_duplicates

    def forward(self, features: Features, pair: Pair) -> dict[str, Tensor]:
        """Return {"contrastive": ()}, the mean over this rank's rows of both directions."""
        channels = [Channel(boost=self.alpha)]
        found = negatives(features, pair, channels=channels, mask_duplicates=self.mask_duplicates)
        loss = InfoNCELoss.of_negatives(found, features.logit_scale)
        return {"contrastive": loss.to(features.logit_scale.dtype)}


PART = LLaVELoss
