"""What is summed over negatives, and how the sum depends on their exponents u.

A link begins a sum, adds a tile's terms, finishes it, and turns the loss's gradient at a finished
sum into the coefficients of `strip.py`. Shapes: r rows, c columns of a tile; any shape elsewhere.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# exp(60) leaves room for 1e12 terms in float32; sums below exp(-57) would have lost terms
_LARGEST_EXPONENT, _SMALLEST_SUM = 60.0, 1e-25


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)); torch's own default returns x beyond 20, wrong by 2e-9."""
    return F.softplus(x, threshold=50.0)


class Softmax:
    """L = log of the sum of exp(u): exponents shifted by a constant, which a guard watches over."""

    zero = 0.0

    def __init__(self, largest: float) -> None:
        # beyond a slope of 130 no constant serves every cosine: this one serves hardest negatives
        # between 0.1 and 0.75
        centred = 0.1 * largest - math.log(_SMALLEST_SUM)
        self.shift = max(0.0, min(largest - _LARGEST_EXPONENT, centred))

    def begin(self, *shape: int, like: Tensor) -> Tensor:
        """An empty sum."""
        return torch.zeros(shape, dtype=torch.float64, device=like.device)

    def terms(self, u: Tensor) -> Tensor:
        """exp(u - shift), in place."""
        return (u.sub_(self.shift) if self.shift else u).exp_()

    def add(self, sums: Tensor, terms: Tensor, dim: int) -> None:
        """sums += terms summed over `dim`."""
        sums += terms.sum(dim)

    def lost(self, sums: Tensor, counts: Tensor) -> Tensor:
        """Whether a sum left the range in which no term is lost."""
        usable = torch.isfinite(sums) & (sums > _SMALLEST_SUM)
        return (~usable & (counts > 0)).any()

    def finish(self, sums: Tensor) -> Tensor:
        """L."""
        return sums.log() + self.shift

    def coefficients(self, grad: Tensor, value: Tensor) -> Tensor:
        """grad * exp(shift - L); zero where there is no negative. Any shape, kept."""
        return (grad * (self.shift - value).exp()).masked_fill(value == -torch.inf, 0.0)

    def slopes(self, u: Tensor, a: Tensor, c: Tensor | None, out: Tensor) -> Tensor:
        """(r, c) gradient of a tile: exp(u - shift) * (a_i + c_j), in place of u."""
        terms = self.terms(u)
        if c is None:
            return terms.mul_(a[:, None])
        return terms.mul_(torch.add(a[:, None], c[None, :], out=out))


class OnlineSoftmax(Softmax):
    """As Softmax, each tile reduced around its own maximum: slower, and never out of range."""

    zero = -torch.inf

    def __init__(self) -> None:
        super().__init__(0.0)

    def begin(self, *shape: int, like: Tensor) -> Tensor:
        """See Softmax; sums are kept as logarithms."""
        return torch.full(shape, -torch.inf, dtype=torch.float64, device=like.device)

    def terms(self, u: Tensor) -> Tensor:
        """u itself."""
        return u

    def add(self, sums: Tensor, terms: Tensor, dim: int) -> None:
        """See Softmax."""
        torch.logaddexp(sums, torch.logsumexp(terms, dim).double(), out=sums)

    def finish(self, sums: Tensor) -> Tensor:
        """L."""
        return sums

    def coefficients(self, grad: Tensor, value: Tensor) -> Tensor:
        """(2, ...): gradient and L side by side."""
        return torch.stack([grad, value.masked_fill(value == -torch.inf, 0.0)])

    def slopes(self, u: Tensor, a: Tensor, c: Tensor | None, out: Tensor) -> Tensor:
        """exp(u - L_i) * g_i + exp(u - L_j) * h_j."""
        by_row = torch.sub(u, a[1][:, None], out=out).exp_().mul_(a[0][:, None])
        if c is None:
            return by_row
        return u.sub_(c[1][None, :]).exp_().mul_(c[0][None, :]).add_(by_row)


class Sigmoid(Softmax):
    """The sum of softplus(u), the binary cross entropy of a negative; rows only."""

    def __init__(self) -> None:
        super().__init__(0.0)

    def terms(self, u: Tensor) -> Tensor:
        """softplus(u)."""
        return softplus(u)

    def lost(self, sums: Tensor, counts: Tensor) -> Tensor:
        """Never."""
        return torch.zeros((), dtype=torch.bool, device=sums.device)

    def finish(self, sums: Tensor) -> Tensor:
        """The sum."""
        return sums

    def coefficients(self, grad: Tensor, value: Tensor) -> Tensor:
        """The gradient."""
        return grad

    def slopes(self, u: Tensor, a: Tensor, c: Tensor | None, out: Tensor) -> Tensor:
        """sigmoid(u) * a_i."""
        return u.sigmoid_().mul_(a[:, None])
