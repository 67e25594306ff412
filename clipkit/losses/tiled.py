"""The streaming kernel of the contrastive losses: exact at any batch, in memory that grows with B.

A loss asks `negatives` for one sum over the negatives of every row and column (log-sum-exp, or the
sum of softplus for sigmoid losses) and does the rest in O(b). Four matrix products in all: one
pass of tiles for the sums of rows and columns together, one to compute the tiles again, two for
the gradients. `loss_and_feature_grads` is the same without autograd.

Across ranks, rows are this rank's and columns everyone's. Plan `rs` gathers the columns, adds the
column sums over ranks and scatters the columns' gradients; plan `lse` gathers both sides and
exchanges coefficients instead, so backward sends nothing of feature size, for a fifth product.

Shapes: b rows of this rank, N ranks, B = N * b, D embed dim, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from clipkit.contracts import Features, Pair, Tiling, base_name
from clipkit.losses.link import softplus
from clipkit.losses.strip import Channel, Sums, keeps_products
from clipkit.losses.sweep import Side, Sweep

__all__ = [
    "Channel",
    "LossAndGrads",
    "Negatives",
    "loss_and_feature_grads",
    "negatives",
    "softplus",
]


class Negatives(NamedTuple):
    """What a loss is made of.

    Attributes:
        by_image: (C, b) float64, over each image's negatives: the logarithm of the sum of
            exp(logit), or with `sigmoid` the sum of softplus(logit). -inf (0) where there is none.
        by_text: (C, b) float64, over each text's negative images; zeros with `sigmoid`, which
            counts every pair once, from its image.
        cosine: (b,) float64, of the positives.
        num_by_image: (b,) int64, negatives of each image.
        num_by_text: (b,) int64, negatives of each text.
    """

    by_image: Tensor
    by_text: Tensor
    cosine: Tensor
    num_by_image: Tensor
    num_by_text: Tensor


class LossAndGrads(NamedTuple):
    """A loss and its gradients; those of features are (b, D), of scalars ()."""

    loss: Tensor
    image: Tensor
    text: Tensor
    logit_scale: Tensor
    logit_bias: Tensor | None
    columns: tuple[Tensor, ...]


@dataclass
class _Problem:
    """A sweep and what backward needs to know of forward."""

    sweep: Sweep
    sums: Sums | None = None

    def forward(self) -> Negatives:
        self.sums = sums = self.sweep.sums()
        columns = torch.zeros_like(sums.rows) if sums.columns is None else sums.columns
        num_columns = sums.num_rows if sums.num_columns is None else sums.num_columns
        cosine = self.sweep.positive_cosines()
        return Negatives(sums.rows, columns, cosine, sums.num_rows, num_columns)

    def backward(self, rows: Tensor, columns: Tensor, cosine: Tensor) -> list[Tensor | None]:
        assert self.sums is not None
        grads = self.sweep.gradients(self.sums, rows, columns, cosine)
        return [grads.image, grads.text, grads.scale, grads.bias, *grads.extra]


class _Negatives(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, problem: _Problem, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        ctx.problem = problem
        ctx.dtypes = [None if x is None else x.dtype for x in inputs]
        found = problem.forward()
        ctx.mark_non_differentiable(found.num_by_image, found.num_by_text)
        return tuple(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.problem is None:
            raise RuntimeError(
                "`negatives` keeps its state for one backward: add all terms before backward, "
                "or call `negatives` again"
            )
        found = ctx.problem.backward(*grads[:3])
        ctx.problem = None
        return None, *(None if g is None else g.to(t) for g, t in zip(found, ctx.dtypes))


def _problem(
    image: Side, text: Side, extra: list[Side], scale: Tensor, bias: Tensor | None, **how: Any
) -> _Problem:
    tiling: Tiling = how["tiling"]
    if not how["channels"] or (how["sigmoid"] and how["channels"] != [Channel()]):
        raise ValueError("channels: at least one; with sigmoid the default one only")
    num_pairs = len(image.rows) * tiling.world_size * sum(len(s.rows) for s in (text, *extra))
    sweep = Sweep(
        image,
        text,
        extra,
        float(scale.detach()),
        0.0 if bias is None else float(bias.detach()),
        channels=how["channels"],
        sigmoid=how["sigmoid"],
        has_bias=bias is not None,
        tiling=tiling,
        keep=keeps_products(num_pairs),
    )
    return _Problem(sweep)


def negatives(
    features: Features,
    pair: Pair,
    *,
    channels: Sequence[Channel] = (Channel(),),
    sigmoid: bool = False,
    mask_duplicates: bool = False,
) -> Negatives:
    """Sums over the negatives of this rank's images and texts; backward reaches all ranks.

    Negatives of an image are the texts of the other samples and every valid entry of the pair's
    columns; those of a text are the other images. A pair's share in a sum depends on its cosine
    only: exp(multiplier * logit), times exp(boost * cosine) held constant. Results are float64,
    because a log-sum-exp minus a positive logit cancels; a loss converts its value at the end.

    Args:
        features: Of this rank. Its `tiling` holds tile size and plan.
        pair: Which embeddings meet.
        channels: One sum for each.
        sigmoid: Sum softplus(logit) instead of exp(logit); of images only, with the one default
            channel.
        mask_duplicates: Samples with equal id or caption are no negatives of each other.

    Raises:
        ValueError: The pair names something else than one embedding a sample, or an unknown one.
    """
    _check(features, pair)
    image, text = features.local(pair.image), features.local(pair.text)  # (b, 1, D)
    keys: dict[str, Tensor] = {}
    if mask_duplicates:
        keys = {} if features.ids is None else {"id": features.ids}
        for name in (base_name(pair.text), base_name(pair.image)):
            if name in features.text_keys:
                keys["caption"] = features.text_keys[name][:, 0]
    extra = [_extra_side(features, name, mask_duplicates) for name in pair.columns]
    columns = [features.local(name).flatten(0, 1) for name in pair.columns]  # (b * M, D)
    image, text = image.flatten(0, 1), text.flatten(0, 1)  # (b, D)
    bias = features.logit_bias if sigmoid else None
    problem = _problem(
        Side(image.detach(), keys),
        Side(text.detach(), keys),
        extra,
        features.logit_scale,
        bias,
        channels=list(channels),
        sigmoid=sigmoid,
        tiling=features.tiling._replace(rank=_rank_of(features), world_size=features.world_size),
    )
    return Negatives(*_Negatives.apply(problem, image, text, features.logit_scale, bias, *columns))


def _check(features: Features, pair: Pair) -> None:
    for name in (pair.image, pair.text, *pair.columns):
        if name not in features.embeddings:
            known = ", ".join(features.embeddings)
            raise ValueError(f"the pair names '{name}'; this batch has embeddings of: {known}")
    for name in (pair.image, pair.text):
        if features.local(name).shape[1] != 1:
            raise ValueError(f"'{name}' has several embeddings a sample; only columns may")


def _rank_of(features: Features) -> int:
    return features.rows.start // features.num_rows


def _extra_side(features: Features, name: str, mask_duplicates: bool) -> Side:
    keys = {}
    if mask_duplicates and base_name(name) in features.text_keys:
        keys = {"caption": features.text_keys[base_name(name)].flatten()}
    mask = features.masks.get(name)
    return Side(
        features.local(name).flatten(0, 1).detach(), keys, None if mask is None else mask.flatten()
    )


def loss_and_feature_grads(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    loss_of: Callable[[Negatives, Tensor, Tensor | None], Tensor],
    *,
    logit_bias: Tensor | None = None,
    columns: Sequence[Tensor] = (),
    channels: Sequence[Channel] = (Channel(),),
    sigmoid: bool = False,
    tiling: Tiling | None = None,
) -> LossAndGrads:
    """A loss and its gradients without autograd over the features.

    Gradients are those of the sum of all ranks' losses, as autograd through `negatives` gives them;
    an engine that averages parameter gradients over ranks makes them those of the mean. Duplicates
    are not masked here.

    Args:
        image: (b, D) unit rows of this rank.
        text: (b, D).
        logit_scale: (), exp already taken.
        loss_of: (negatives, logit_scale, logit_bias) -> (), e.g. `InfoNCELoss.of_negatives`.
        logit_bias: () or None; only sigmoid losses read it.
        columns: Extra negatives of the images, (n, D) each, n equal on all ranks.
        channels: One sum over the negatives for each.
        sigmoid: Sums of softplus instead of log-sum-exps.
        tiling: Tile size, plan and ranks; None: one process.
    """
    with torch.no_grad():
        problem = _problem(
            Side(image, {}),
            Side(text, {}),
            [Side(c, {}) for c in columns],
            logit_scale,
            logit_bias if sigmoid else None,
            channels=list(channels),
            sigmoid=sigmoid,
            tiling=tiling or Tiling(),
        )
        found = problem.forward()
    sums = [t.detach().requires_grad_() for t in found[:3]]
    scale = logit_scale.detach().clone().requires_grad_()
    bias = None if logit_bias is None else logit_bias.detach().clone().requires_grad_()
    with torch.enable_grad():
        leaves = Negatives(sums[0], sums[1], sums[2], found.num_by_image, found.num_by_text)
        loss = loss_of(leaves, scale, bias)
        loss.backward()
    upstream = [torch.zeros_like(t) if t.grad is None else t.grad for t in sums]
    d_image, d_text, d_scale, d_bias, *d_columns = problem.backward(*upstream)
    assert d_image is not None and d_text is not None
    total_scale = _added(d_scale, scale.grad, scale)
    total_bias = None if bias is None else _added(d_bias, bias.grad, bias)
    columns_grads = tuple(c for c in d_columns if c is not None)
    return LossAndGrads(loss.detach(), d_image, d_text, total_scale, total_bias, columns_grads)


def _added(a: Tensor | None, b: Tensor | None, like: Tensor) -> Tensor:
    """Sum of what there is, in the type of `like`."""
    return sum((x.to(like.dtype) for x in (a, b) if x is not None), torch.zeros_like(like.detach()))
