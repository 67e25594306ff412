"""Sigmoid pairwise loss, Zhai et al. 2023, https://arxiv.org/abs/2303.15343.

Shapes: b rows of this rank, B global batch, M extra texts per sample, D embed dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipkit.contracts import Features, Pair


class SigLIPLoss(nn.Module):
    """Binary cross entropy over every image-text pair of the global batch.

    Set `model.init_logit_bias: -10` and `model.init_logit_scale: 2.3026` as in the paper.
    Use it when: the batch is too small or too spread out for a softmax. See also: InfoNCELoss.
    """

    def __init__(self) -> None:
        super().__init__()

    def forward(self, features: Features, pair: Pair) -> dict[str, Tensor]:
        """Return {"contrastive": ()}, the mean over this rank's images of summed pair losses."""
        image = features.local(pair.image)[:, 0]  # (b, D)
        logits = self._logits(features, image, features.all(pair.text)[:, 0])  # (b, B)
        sign = torch.full_like(logits, -1.0)
        sign[:, features.rows].fill_diagonal_(1.0)
        loss = -F.logsigmoid(sign * logits).sum()
        for name in pair.columns:
            extra = self._logits(features, image, features.all(name).flatten(0, 1))  # (b, B * M)
            invalid = ~features.all_mask(name).flatten()
            loss = loss - F.logsigmoid(-extra).masked_fill(invalid, 0.0).sum()
        return {"contrastive": loss / image.shape[0]}

    @staticmethod
    def _logits(features: Features, rows: Tensor, columns: Tensor) -> Tensor:
        logits = features.logit_scale * rows @ columns.T
        return logits if features.logit_bias is None else logits + features.logit_bias


PART = SigLIPLoss
