"""Symmetric InfoNCE, the loss of CLIP: Radford et al. 2021, https://arxiv.org/abs/2103.00020.

Extra text columns are negatives of the image rows: NegCLIP, Yuksekgonul et al. 2023,
https://arxiv.org/abs/2210.01936.

Shapes: b rows of this rank, B global batch, M extra texts per sample, D embed dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipkit.contracts import Features, Pair


class InfoNCELoss(nn.Module):
    """Cross entropy of each image against all texts and of each text against all images, averaged.

    Use it when: in doubt; it is the reference. See also: SigLIPLoss, which needs no global softmax.
    """

    def __init__(self) -> None:
        super().__init__()

    def forward(self, features: Features, pair: Pair) -> dict[str, Tensor]:
        """Return {"contrastive": ()}, the mean over this rank's rows of both directions."""
        image, text = features.local(pair.image)[:, 0], features.local(pair.text)[:, 0]  # (b, D)
        all_image, all_text = (
            features.all(pair.image)[:, 0],
            features.all(pair.text)[:, 0],
        )  # (B, D)
        scale = features.logit_scale
        by_image = scale * image @ all_text.T  # (b, B)
        by_text = scale * text @ all_image.T  # (b, B)
        for name in pair.columns:
            extra = scale * image @ features.all(name).flatten(0, 1).T  # (b, B * M)
            invalid = ~features.all_mask(name).flatten()
            by_image = torch.cat([by_image, extra.masked_fill(invalid, float("-inf"))], dim=1)
        labels = torch.arange(features.rows.start, features.rows.stop, device=image.device)
        loss = (F.cross_entropy(by_image, labels) + F.cross_entropy(by_text, labels)) / 2
        return {"contrastive": loss}


PART = InfoNCELoss
