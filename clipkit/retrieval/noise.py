"""Noise on features, so that a head trained on texts serves images too: CLOSE, Gu et al. 2023,
https://arxiv.org/abs/2211.09778.

Shapes: n items, D embed dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def add_noise(features: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """Gaussian noise on every dimension, and unit length again.

    The noise is about sigma * sqrt(D) long, and the cosine to the feature before is about
    1 / sqrt(1 + sigma^2 * D) on average: keep sigma * sqrt(D) when D changes.

    Args:
        features: (n, D) unit rows.
        sigma: Standard deviation of one dimension; the paper's 0.04 at D = 768 is 1.1 long.
        generator: On the features' device.

    Returns:
        (n, D) unit rows of the features' type; the very same features for sigma 0.
    """
    if sigma == 0:
        return features
    noise = torch.empty_like(features).normal_(generator=generator)
    return F.normalize(features + sigma * noise, dim=-1)
