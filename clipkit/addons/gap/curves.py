"""The modality gap of a batch while it trains, in O(D) sums and two sweeps for uniformity.

The evaluation task `modality_gap` measures the same on held-out data, with intervals. Here every
sample counts once, with the crops and dropout of training.

Shapes: b rows of this rank, B global batch, D embed dim.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from clipkit.addons.gap.terms import Kernel, uniformity
from clipkit.contracts import Features


@torch.no_grad()
def gap_curves(features: Features, kernel: Kernel) -> dict[str, float]:
    """Measures of the global batch, equal on all ranks.

    Args:
        features: Detached rows of this rank.
        kernel: Of uniformity; pairs of a row with itself never count here.

    Returns:
        gap/centroid_gap: Distance of the modalities' means, 0 .. 2.
        gap/rmg: Relative modality gap, 0 .. 1 (Schrodi et al. 2025,
            https://arxiv.org/abs/2404.07983): 0.5 for independent isotropic features.
        gap/alignment: Mean squared distance of an image from its text, 0 .. 4.
        gap/uniformity_image, gap/uniformity_text: Log of the mean kernel, at most 0.
    """
    image, text = (features.local(name)[:, 0].double() for name in ("image", "text"))  # (b, D)
    squares = torch.stack([(x * y).sum() for x, y in ((image, text), (image, image), (text, text))])
    sums = features.sum(torch.cat([image.sum(0), text.sum(0), squares]))
    rows, width = features.num_rows * features.world_size, image.shape[1]
    image_sum, text_sum = sums[:width], sums[width : 2 * width]
    matched, image_squares, text_squares = (sums[2 * width :]).tolist()

    def spread(total: torch.Tensor, squared: float) -> float:
        """(1 - mean cosine of different rows) / 2."""
        return (1 - (float(total @ total) - squared) / max(1, rows * (rows - 1))) / 2

    pair = max(0.0, (1 - matched / rows) / 2)
    within = (spread(image_sum, image_squares) + spread(text_sum, text_squares)) / 2
    found = {
        "centroid_gap": float((image_sum - text_sum).norm()) / rows,
        "rmg": pair / max(pair + within, 1e-6),
        "alignment": 4 * pair,
    }
    kernel = replace(kernel, include_self=False)
    for name in ("image", "text"):
        found[f"uniformity_{name}"] = float(uniformity(features, name, name, kernel))
    return {f"gap/{name}": value for name, value in found.items()}
