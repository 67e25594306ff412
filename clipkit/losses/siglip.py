"""Sigmoid pairwise loss, Zhai et al. 2023, https://arxiv.org/abs/2303.15343.

Shapes: b rows of this rank, B global batch, M extra texts per sample, D embed dim.
"""

from __future__ import annotations

from torch import Tensor, nn

from clipkit.contracts import Features, Pair
from clipkit.losses.tiled import Negatives, negatives, softplus


class SigLIPLoss(nn.Module):
    """Binary cross entropy over every image-text pair; set model.init_logit_bias: -10.

    And `model.init_logit_scale: 2.3026`, as in the paper: without the bias the many negatives of a
    fresh model dominate the first steps.
    Use it when: the batch is too small or too spread out for a softmax. See also: InfoNCELoss.

    Args:
        mask_duplicates: Samples with equal id or caption are no negatives of each other.
    """

    wants_logit_bias = True

    def __init__(self, *, mask_duplicates: bool = False) -> None:
        super().__init__()
        self.mask_duplicates = mask_duplicates

    def forward(self, features: Features, pair: Pair) -> dict[str, Tensor]:
        """Return {"contrastive": ()}, the mean over this rank's images of summed pair losses."""
        found = negatives(features, pair, sigmoid=True, mask_duplicates=self.mask_duplicates)
        loss = self.of_negatives(found, features.logit_scale, features.logit_bias)
        return {"contrastive": loss.to(features.logit_scale.dtype)}

    @staticmethod
    def of_negatives(
        found: Negatives, logit_scale: Tensor, logit_bias: Tensor | None = None
    ) -> Tensor:
        """softplus(logit) of every negative and softplus(-logit) of the positive."""
        positive = logit_scale * found.cosine  # (b,)
        if logit_bias is not None:
            positive = positive + logit_bias
        return (found.by_image[0] + softplus(-positive)).mean()


PART = SigLIPLoss
