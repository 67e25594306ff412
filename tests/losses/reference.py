"""The losses once more, as full matrices and by their formulas: slow, short, for comparison only.

Shapes: B rows, M extra texts per row, D embed dim; a direction is (B, K), K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Problem:
    """A global batch.

    Attributes:
        image, text: (B, D).
        scale, bias: ().
        ids: (B,).
        captions: (B,) keys of the texts.
        columns: (B, M, D) further negatives of the images, or None.
        mask: (B, M) bool, columns that count.
        column_captions: (B, M).
    """

    image: Tensor
    text: Tensor
    scale: Tensor
    bias: Tensor
    ids: Tensor
    captions: Tensor
    columns: Tensor | None
    mask: Tensor
    column_captions: Tensor


@dataclass
class Direction:
    """One side against the other.

    Attributes:
        cosine: (B, K); the positive of row i is class i.
        negative: (B, K) bool.
        counts: (B, K) bool, classes that exist; a duplicate exists and is no negative.
    """

    cosine: Tensor
    negative: Tensor
    counts: Tensor

    @property
    def positive(self) -> Tensor:
        """(B,) cosines."""
        return self.cosine.diagonal()


def by_image(p: Problem, mask_duplicates: bool) -> Direction:
    """Images against all texts and columns."""
    eye = torch.eye(len(p.image), dtype=torch.bool)
    counts, same = torch.ones_like(eye), eye
    if mask_duplicates:
        same = same | (p.ids[:, None] == p.ids) | (p.captions[:, None] == p.captions)
    cosine = p.image @ p.text.T
    if p.columns is not None:
        cosine = torch.cat([cosine, p.image @ p.columns.flatten(0, 1).T], dim=1)
        valid = p.mask.flatten().expand(len(p.image), -1)
        equal = p.captions[:, None] == p.column_captions.flatten()
        counts = torch.cat([counts, valid], dim=1)
        same = torch.cat([same, equal if mask_duplicates else torch.zeros_like(equal)], dim=1)
    return Direction(cosine, counts & ~same, counts)


def by_text(p: Problem, mask_duplicates: bool) -> Direction:
    """Texts against all images."""
    d, size = by_image(p, mask_duplicates), len(p.image)
    return Direction(*(x[:, :size].T for x in (d.cosine, d.negative, d.counts)))


def directions(p: Problem, mask_duplicates: bool) -> list[Direction]:
    """Both."""
    return [by_image(p, mask_duplicates), by_text(p, mask_duplicates)]


def log_sum(logits: Tensor, keep: Tensor) -> Tensor:
    """(B,) log of the sum of exp over kept classes; -inf, without gradient, where none is kept."""
    some = keep.any(1)
    largest = torch.where(some, logits.masked_fill(~keep, -torch.inf).amax(1), 0.0).detach()
    total = (logits - largest[:, None]).masked_fill(~keep, -torch.inf).exp().sum(1)
    return torch.where(some, torch.where(some, total, 1.0).log() + largest, -torch.inf)


def infonce(p: Problem, mask_duplicates: bool, label_smoothing: float = 0.0) -> Tensor:
    """Cross entropy; a smoothed target is spread over all classes that exist."""
    parts = []
    for d in directions(p, mask_duplicates):
        logits = p.scale * d.cosine
        kept = d.negative | torch.eye(*d.cosine.shape, dtype=torch.bool)
        mean = (logits * d.counts).sum(1) / d.counts.sum(1)
        target = (1 - label_smoothing) * p.scale * d.positive + label_smoothing * mean
        parts.append((log_sum(logits, kept) - target).mean())
    return sum(parts) / 2


def llave(p: Problem, mask_duplicates: bool, alpha: float) -> Tensor:
    """Negatives get alpha * cosine on top, without gradient."""
    parts = []
    for d in directions(p, mask_duplicates):
        eye = torch.eye(*d.cosine.shape, dtype=torch.bool)
        boosted = p.scale * d.cosine + (alpha * d.cosine.detach()).masked_fill(eye, 0.0)
        parts.append((log_sum(boosted, d.negative | eye) - p.scale * d.positive).mean())
    return sum(parts) / 2


def hcl(p: Problem, mask_duplicates: bool, beta: float, tau_plus: float) -> Tensor:
    """As printed: p, e_j, R, Ng. Needs float64 at CLIP's temperatures."""
    parts = []
    for d in directions(p, mask_duplicates):
        count = d.negative.sum(1).to(d.cosine.dtype)
        positive, e = (p.scale * d.positive).exp(), (p.scale * d.cosine).exp() * d.negative
        weight = (beta * p.scale * d.cosine).exp() * d.negative
        mean_weight = torch.where(count > 0, weight.sum(1) / count.clamp(min=1), 1.0)
        reweighted = (weight * e).sum(1) / mean_weight
        corrected = (reweighted - tau_plus * count * positive) / (1 - tau_plus)
        negative = torch.maximum(corrected, count * (-p.scale).exp())
        parts.append(torch.log1p(negative / positive).mean())
    return sum(parts) / 2


def dcl(p: Problem, mask_duplicates: bool, weight_sigma: float | None = None) -> Tensor:
    """No positive in the denominator; a row without negatives counts 0."""
    weight = torch.ones(())
    if weight_sigma is not None:
        cosine = by_image(p, False).positive
        weight = 2 - len(cosine) * torch.softmax(cosine / weight_sigma, dim=0)
    parts = []
    for d in directions(p, mask_duplicates):
        loss = log_sum(p.scale * d.cosine, d.negative) - weight * p.scale * d.positive
        parts.append(torch.where(d.negative.any(1), loss, 0.0).mean())
    return sum(parts) / 2


def siglip(p: Problem, mask_duplicates: bool) -> Tensor:
    """Binary cross entropy of every pair, summed over texts."""
    d = by_image(p, mask_duplicates)
    logits, zero = p.scale * d.cosine + p.bias, torch.zeros_like(d.cosine)
    negative = torch.logaddexp(logits, zero).masked_fill(~d.negative, 0.0).sum(1)
    positive = torch.logaddexp(-logits.diagonal(), zero[:, 0])
    return (negative + positive).mean()
