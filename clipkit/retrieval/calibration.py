"""Fusing text and image features of one item, and removing each modality's mean from them.

CLIP's text and image features lie in two narrow cones, so a text query scores any text above the
right image. GR-CLIP (Li et al. 2025, https://arxiv.org/abs/2507.19054) subtracts from every feature
the mean of its modality, measured on other data, and from a fused one the means fused alike.

Shapes: n items, D embed dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class ModalityMeans:
    """Where the features of each modality lie on average.

    Queries and documents have means of their own: a question is not worded like a document.

    Attributes:
        text: (D,) fp64.
        image: (D,) fp64.
    """

    text: Tensor
    image: Tensor


def fit_means(texts: Tensor, images: Tensor) -> ModalityMeans:
    """Means of (n, D) text and (m, D) image features; 0 for a modality without any.

    Use features of data that is not scored: means of the scored items leak the test set.
    """
    return ModalityMeans(_mean(texts), _mean(images))


def _mean(rows: Tensor) -> Tensor:
    return rows.double().sum(dim=0) / max(len(rows), 1)


def fuse(
    texts: Tensor, images: Tensor, text_weight: Tensor, means: ModalityMeans | None = None
) -> Tensor:
    """One feature an item: w * text + (1 - w) * image, minus the means fused alike, unit length.

    Args:
        texts: (n, D) unit rows; anything finite where the weight is 0.
        images: (n, D) unit rows; anything finite where the weight is 1.
        text_weight: (n,) 1 for an item of text alone, 0 for an image alone, between for both.
        means: What to subtract; None subtracts nothing.

    Returns:
        (n, D) fp32 unit rows; 0 where nothing remains.
    """
    weight = text_weight.double()[:, None]  # (n, 1)
    fused = weight * texts.double() + (1 - weight) * images.double()
    if means:
        fused = fused - (weight * means.text + (1 - weight) * means.image)
    return F.normalize(fused, dim=-1).float()
