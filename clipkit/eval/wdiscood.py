"""WDiscOOD: out-of-distribution score by whitened linear discriminants, Chen et al. 2023.

https://arxiv.org/abs/2303.07543. Features are whitened by the within-class covariance; a sample is
far from the training set if it is far from every class mean among the discriminants, or far from
the mean in the directions that tell no classes apart.

Shapes: n samples, C classes, D embed dim, G discriminants.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_FLOOR = 1e-5  # of the largest variance: directions with less are not blown up any further
_NO_VARIANCE = 1e-12
_ROWS = 4096


@dataclass(frozen=True)
class Discriminants:
    """What `fit` learns of the training features.

    Attributes:
        mean: (D,) of all samples.
        class_means: (C, D).
        whitening: (D, D) S_w^(-1/2).
        axes: (G, D) orthonormal rows in the whitened space.
    """

    mean: Tensor
    class_means: Tensor
    whitening: Tensor
    axes: Tensor

    def score(self, x: Tensor, alpha: float) -> Tensor:
        """(n, D) -> (n,) fp64, higher is more like the training set.

        Args:
            x: Features.
            alpha: Weight of the distance outside the discriminants; 0 leaves the class distance.
        """
        centred = (x.double() - self.mean) @ self.whitening  # (n, D)
        means = (self.class_means - self.mean) @ self.whitening @ self.axes.T  # (C, G)
        inside = centred @ self.axes.T  # (n, G)
        nearest = [torch.cdist(rows, means).min(dim=1).values for rows in inside.split(_ROWS)]
        outside = centred - inside @ self.axes
        return -torch.cat(nearest) - alpha * outside.norm(dim=1)


def fit(x: Tensor, labels: Tensor, num_discriminants: int | None = None) -> Discriminants:
    """Whitening and discriminants of labelled features.

    The between-class covariance has rank C - 1 at most, so no more discriminants are kept. A
    variance below 1e-5 of the largest is taken as that: with fewer samples than dimensions some
    are zero.

    Args:
        x: (n, D).
        labels: (n,) classes; those that occur count.
        num_discriminants: None for all C - 1.
    """
    x = x.double()
    classes, number = labels.unique(return_inverse=True)
    counts = torch.bincount(number, minlength=len(classes)).double()  # (C,)
    zeros = torch.zeros(len(classes), x.shape[1], dtype=torch.float64)
    means = zeros.index_add(0, number, x) / counts[:, None]
    mean = x.mean(dim=0)
    within = x - means[number]
    values, vectors = torch.linalg.eigh(within.T @ within / len(x))
    values = values.clamp(min=max(_FLOOR * float(values[-1]), _NO_VARIANCE))
    whitening = (vectors / values.sqrt()) @ vectors.T  # symmetric
    spread = (means - mean) @ whitening * (counts / len(x)).sqrt()[:, None]  # (C, D)
    # eigh sorts upwards, and S_w is the identity here: these are the discriminants
    axes = torch.linalg.eigh(spread.T @ spread)[1].flip(1).T
    most = min(len(classes) - 1, x.shape[1])
    kept = most if num_discriminants is None else min(num_discriminants, most)
    return Discriminants(mean, means, whitening, axes[:kept])
