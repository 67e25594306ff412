"""Symmetric InfoNCE, the loss of CLIP: Radford et al. 2021, https://arxiv.org/abs/2103.00020.

Extra text columns are negatives of the image rows: NegCLIP, Yuksekgonul et al. 2023,
https://arxiv.org/abs/2210.01936.

Shapes: b rows of this rank, B global batch, M extra texts per sample, D embed dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clipkit.contracts import Features, Pair
from clipkit.errors import ConfigError
from clipkit.losses.tiled import Negatives, negatives, softplus


class InfoNCELoss(nn.Module):
    """Cross entropy of each image against all texts and of each text against all images, averaged.

    Use it when: in doubt; it is the reference. See also: SigLIPLoss, which needs no global softmax.

    Args:
        label_smoothing: Share of the target spread evenly over all texts (images) of a row,
            duplicates included; 0 <= label_smoothing < 1.
        mask_duplicates: Samples with equal id or caption are no negatives of each other.
    """

    def __init__(self, *, label_smoothing: float = 0.0, mask_duplicates: bool = False) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ConfigError(f"loss.label_smoothing={label_smoothing}: choose 0 <= value < 1")
        self.label_smoothing, self.mask_duplicates = label_smoothing, mask_duplicates

    def forward(self, features: Features, pair: Pair) -> dict[str, Tensor]:
        """Return {"contrastive": ()}, the mean over this rank's rows of both directions."""
        found = negatives(features, pair, mask_duplicates=self.mask_duplicates)
        loss = self.of_negatives(found, features.logit_scale)
        if self.label_smoothing:
            with torch.autocast(found.cosine.device.type, enabled=False):  # logits are not rounded
                loss = loss + self.label_smoothing * self._smoothing(features, pair, found)
        return {"contrastive": loss.to(features.logit_scale.dtype)}

    @staticmethod
    def of_negatives(
        found: Negatives, logit_scale: Tensor, logit_bias: Tensor | None = None
    ) -> Tensor:
        """Cross entropy is softplus(log-sum-exp of the negatives - positive logit)."""
        positive = logit_scale * found.cosine  # (b,)
        by_image, by_text = found.by_image[0] - positive, found.by_text[0] - positive
        return (softplus(by_image) + softplus(by_text)).mean() / 2

    @staticmethod
    def _smoothing(features: Features, pair: Pair, found: Negatives) -> Tensor:
        """Positive minus mean logit of a row, averaged over rows and both directions."""
        image, text = (_wide_rows(features, n) for n in (pair.image, pair.text))  # (b, D)
        num_texts = features.num_rows * features.world_size
        all_images, all_texts = features.sum(image.sum(0)), features.sum(text.sum(0))  # (D,)
        by_text = text @ all_images / num_texts  # (b,) mean cosine
        for name in pair.columns:
            rows, mask = _wide_rows(features, name), features.all_mask(name)
            own = features.masks.get(name)
            rows = rows if own is None else rows * own.flatten()[:, None]
            all_texts = all_texts + features.sum(rows.sum(0))
            num_texts += int(mask.sum())
        by_image = image @ all_texts / num_texts
        return features.logit_scale * (found.cosine - (by_image + by_text) / 2).mean()


def _wide_rows(features: Features, name: str) -> Tensor:
    """(b * M, D), at least float32."""
    rows = features.local(name).flatten(0, 1)
    return rows if rows.dtype == torch.float64 else rows.float()


PART = InfoNCELoss
