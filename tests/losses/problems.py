"""Batches for the streaming losses, and both answers to them: the kernel's and the reference's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipkit.contracts import Features, Pair, Tiling
from clipkit.dist import collectives
from clipkit.dist.group import World
from clipkit.losses.dcl import DCLLoss
from clipkit.losses.hcl import HCLLoss
from clipkit.losses.infonce import InfoNCELoss
from clipkit.losses.llave import LLaVELoss
from clipkit.losses.siglip import SigLIPLoss
from tests.losses import reference
from tests.losses.reference import Problem

ALONE, AUTO = World(), Tiling()
LEAVES = ("image", "text", "columns", "scale", "bias")
LOSSES: dict[str, tuple[type[nn.Module], dict[str, Any], Callable[..., Tensor]]] = {
    "infonce": (InfoNCELoss, {}, reference.infonce),
    "smoothed": (InfoNCELoss, {"label_smoothing": 0.2}, reference.infonce),
    "siglip": (SigLIPLoss, {}, reference.siglip),
    "llave": (LLaVELoss, {"alpha": 5.0}, reference.llave),
    "hcl": (HCLLoss, {"beta": 0.7, "tau_plus": 0.1}, reference.hcl),
    "hcl_biased": (HCLLoss, {"beta": 1.0, "tau_plus": 0.0}, reference.hcl),
    "dcl": (DCLLoss, {}, reference.dcl),
    "dclw": (DCLLoss, {"weight_sigma": 0.5}, reference.dcl),
}


class Answer(NamedTuple):
    """A loss and the gradients of the leaves that have one."""

    loss: Tensor
    grads: dict[str, Tensor]


def unit(*shape: int, generator: torch.Generator) -> Tensor:
    """Unit float64 rows."""
    return F.normalize(torch.randn(shape, generator=generator, dtype=torch.float64), dim=-1)


def make_problem(
    scale: float = 14.3, size: int = 10, dim: int = 6, columns: bool = True, seed: int = 0
) -> Problem:
    """Rows 0 and size - 1 share an id, 1 and size - 2 a caption; a column repeats row 2's."""
    g, num_texts = torch.Generator().manual_seed(seed), 2
    ids, captions = torch.arange(size), torch.arange(100, 100 + size)
    column_captions = torch.arange(500, 500 + size * num_texts).view(size, num_texts)
    mask = torch.rand((size, num_texts), generator=g) < 0.7
    if size > 4:
        ids[-1], captions[-2] = ids[0], captions[1]
        column_captions[-1, 1], mask[-1, 1] = captions[2], True
    extra = unit(size, num_texts, dim, generator=g)
    return Problem(
        unit(size, dim, generator=g),
        unit(size, dim, generator=g),
        torch.tensor(scale, dtype=torch.float64),
        torch.tensor(-1.5, dtype=torch.float64),
        ids,
        captions,
        extra if columns else None,
        mask,
        column_captions,
    )


def cast(p: Problem, dtype: torch.dtype) -> Problem:
    """Features of this type; scalars at least float32."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    columns = None if p.columns is None else p.columns.to(dtype)
    return replace(
        p,
        image=p.image.to(dtype),
        text=p.text.to(dtype),
        columns=columns,
        scale=p.scale.to(wide),
        bias=p.bias.to(wide),
    )


def leaves_of(p: Problem) -> Problem:
    """Copies that take gradients."""
    found = {n: getattr(p, n) for n in LEAVES}
    return replace(p, **{n: t.clone().requires_grad_() for n, t in found.items() if t is not None})


def rows_of(p: Problem, world: World) -> Problem:
    """A rank's rows."""
    local = len(p.image) // world.world_size
    rows = slice(world.rank * local, (world.rank + 1) * local)
    names = ("image", "text", "columns", "mask", "ids", "captions", "column_captions")
    found = {n: getattr(p, n) for n in names}
    return replace(p, **{n: t[rows] for n, t in found.items() if t is not None})


def features_of(p: Problem, tiling: Tiling = AUTO, world: World = ALONE) -> Features:
    """What a loss reads."""
    embeddings = {"image": p.image[:, None], "text": p.text[:, None]}
    text_keys, masks = {"text": p.captions[:, None]}, {}
    if p.columns is not None:
        embeddings["negative"], masks["negative"] = p.columns, p.mask
        text_keys["negative"] = p.column_captions
    return Features(
        embeddings,
        p.scale,
        p.bias,
        masks=masks,
        ids=p.ids,
        rank=world.rank,
        world_size=world.world_size,
        text_keys=text_keys,
        tiling=tiling,
    )


def pair_of(p: Problem) -> Pair:
    """Images, texts and the columns if there are any."""
    return Pair(columns=() if p.columns is None else ("negative",))


def value_of(
    name: str,
    p: Problem,
    mask_duplicates: bool = False,
    tiling: Tiling = AUTO,
    world: World = ALONE,
) -> Tensor:
    """The loss of a problem, or of a rank's part of it."""
    kind, options, _ = LOSSES[name]
    loss = kind(**options, mask_duplicates=mask_duplicates)
    return loss(features_of(p, tiling, world), pair_of(p))["contrastive"]


def reference_value(name: str, p: Problem, mask_duplicates: bool = False) -> Tensor:
    """The loss by its formula."""
    _, options, formula = LOSSES[name]
    return formula(p, mask_duplicates, **options)


def answer_of(value: Callable[[Problem], Tensor], p: Problem) -> Answer:
    """The loss and its gradients; zeros where it does not depend on a leaf."""
    leaves = leaves_of(p)
    loss = value(leaves)
    loss.backward()
    found = {n: t for n in LEAVES if (t := getattr(leaves, n)) is not None}
    grads = {n: torch.zeros_like(t) if t.grad is None else t.grad for n, t in found.items()}
    return Answer(loss.detach(), grads)


def ours(name: str, p: Problem, mask_duplicates: bool = False, tiling: Tiling = AUTO) -> Answer:
    """The kernel's."""
    return answer_of(partial(value_of, name, mask_duplicates=mask_duplicates, tiling=tiling), p)


def wanted(name: str, p: Problem, mask_duplicates: bool = False) -> Answer:
    """The reference's, in the problem's type."""
    return answer_of(partial(reference_value, name, mask_duplicates=mask_duplicates), p)


def truth(name: str, p: Problem, mask_duplicates: bool = False) -> Answer:
    """The reference's, in float64."""
    return wanted(name, cast(p, torch.float64), mask_duplicates)


def worst(found: Answer, right: Answer) -> float:
    """Largest error of a gradient entry, relative to the largest entry of all features; to 1e-3
    where a batch has next to no gradient."""
    features = [g.abs().max() for g in right.grads.values() if g.dim()]
    largest = torch.stack(features).max().clamp(min=1e-3)
    errors = []
    for name, g in right.grads.items():
        size = torch.maximum(largest, g.abs()) if g.dim() == 0 else largest
        errors.append(((found.grads[name].double() - g).abs().max() / size).item())
    # max() drops a nan that is not first
    return max(e if e == e else float("inf") for e in errors)


def norm_error(found: Answer, right: Answer, name: str) -> float:
    """Relative norm of a gradient's error; inf for a nan."""
    error = (found.grads[name].double() - right.grads[name]).norm() / right.grads[name].norm()
    return error.item() if torch.isfinite(error) else float("inf")


def _scatter_without_sum(x: Tensor, world_size: int, rank: int) -> Tensor:
    rows = x.shape[0] // world_size
    return x[rank * rows : (rank + 1) * rows].clone()


@contextlib.contextmanager
def seeded_fault(kind: str) -> Iterator[None]:
    """Break one thing that ranks rest on."""
    faults = {
        "": contextlib.nullcontext(),
        "scatter": mock.patch.object(collectives, "reduce_scatter", _scatter_without_sum),
        "rank": mock.patch.object(Features, "rows", property(lambda f: slice(0, f.num_rows))),
        "column_sums": mock.patch.object(collectives, "all_reduce", lambda x, world_size: x),
    }
    with faults[kind]:
        yield


class Cell(NamedTuple):
    """One run over ranks; the first rank's first rows, if `dead`, are opposite to everything."""

    loss: str = "infonce"
    columns: bool = True
    mask_duplicates: bool = True
    tiling: Tiling = AUTO
    fault: str = ""
    dead: bool = False


def cell_problem(cell: Cell) -> Problem:
    """The global batch of a cell: 16 rows."""
    p = make_problem(size=16, columns=cell.columns, scale=100.0 if cell.dead else 14.3)
    if not cell.dead:
        return p
    g = torch.Generator().manual_seed(1)
    text = F.normalize(unit(16, 6, generator=g) * 0.01 + torch.ones(6), dim=-1)
    image = text.clone()
    image[:2] = -image[:2]  # of the first rank in any world
    return replace(p, image=image, text=text)


def run_cell(world: World, cell: Cell) -> Answer:
    """A rank's answer."""
    p = rows_of(cell_problem(cell), world)
    value = partial(
        value_of,
        cell.loss,
        mask_duplicates=cell.mask_duplicates,
        tiling=cell.tiling,
        world=world,
    )
    with seeded_fault(cell.fault):
        return answer_of(value, p)


def over_ranks(parts: list[Answer]) -> Answer:
    """The answer of the global batch: losses and scalars averaged, rows put together."""
    grads = {}
    for name, g in parts[0].grads.items():
        found = [p.grads[name] for p in parts]
        # the average over ranks is the loss, so rows carry the gradient of their sum
        grads[name] = torch.cat(found) / len(parts) if g.dim() else torch.stack(found).mean()
    return Answer(torch.stack([p.loss for p in parts]).mean(), grads)
