"""The step is exact: its gradients are those of one process and one big batch.

For every N, K, stage and loss.
"""

from __future__ import annotations

import itertools

import open_clip
import pytest
import torch
from torch import Tensor

from clipkit.addons.base import AddOn
from clipkit.contracts import Features
from clipkit.dist.group import World
from clipkit.engine.chunks import chunk_seed
from clipkit.errors import ConfigError
from tests.engine.cells import Cell, build_strategy, model_for, train_cell, train_step_for
from tests.tiny_model import tiny_batch, tiny_model

STRATEGIES = ["torch", 0, 1, 2, 3]
FULL = [
    Cell(loss, n, k, strategy, dropout)
    for loss, n, k, strategy, dropout in itertools.product(
        ["infonce", "siglip"], [1, 2], [1, 4], STRATEGIES, [False, True]
    )
]
WIDE = [
    Cell("infonce", n, k, stage, batch=32)
    for n, k, stage in itertools.product([1, 2, 4], [1, 2, 8], [0, 1, 2, 3])
]
# every pair of values of two axes occurs in one of these
PAIRWISE = [
    Cell("infonce", 2, 4, "torch", True),
    Cell("siglip", 1, 1, "torch", False),
    Cell("infonce", 1, 1, 0, True),
    Cell("siglip", 2, 4, 0, False),
    Cell("infonce", 2, 1, 1, False),
    Cell("siglip", 1, 4, 1, True),
    Cell("infonce", 1, 4, 2, False),
    Cell("siglip", 2, 1, 2, True),
    Cell("infonce", 2, 4, 3, True),
    Cell("siglip", 1, 1, 3, False),
    Cell("siglip", 2, 4, 3, False),
    Cell("infonce", 2, 4, 2, True),
]


def reference_gradients(cell: Cell) -> tuple[float, dict[str, Tensor]]:
    """open_clip's own loss on one process, one backward.

    Without randomness: the big batch in float64. With dropout: the same N * K chunks under the same
    seeds, every graph kept, in float32 (masks are drawn in the dtype of the activations).
    """
    model = model_for(cell, torch.float32 if cell.dropout else torch.float64)
    model.autocast = None
    batch = tiny_batch(cell.batch)
    pieces = cell.ranks * cell.chunks if cell.dropout else 1
    size = cell.batch // pieces
    outputs = []
    for c in range(pieces):
        torch.manual_seed(chunk_seed(0, 0, c))
        outputs.append(model(batch.rows(c * size, (c + 1) * size)))
    image, text = (torch.cat([o.embeddings[n][:, 0] for o in outputs]) for n in ("image", "text"))
    scale, bias = outputs[0].logit_scale, outputs[0].logit_bias
    if cell.loss == "infonce":
        loss = open_clip.loss.ClipLoss()(image, text, scale)
    else:
        loss = open_clip.loss.SigLipLoss()(image, text, scale, bias)
    loss.backward()
    return loss.item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def worst_error(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> tuple[float, str]:
    """Largest ||g - g*|| / ||g*|| over parameters that matter, and its name."""
    assert found.keys() == wanted.keys()
    total = torch.cat([g.flatten().double() for g in wanted.values()]).norm()
    errors = [
        (float((found[n].double() - g.double()).norm() / g.double().norm()), n)
        for n, g in wanted.items()
        if g.double().norm() > 1e-6 * total
    ]
    assert any(name.endswith("logit_scale") for _, name in errors)
    return max(errors)


def measure(cell: Cell, ranks) -> tuple[float, float, str]:  # type: ignore[no-untyped-def]
    """(loss error, worst gradient error, its parameter) over the ranks."""
    wanted_loss, wanted = reference_gradients(cell)
    answers = ranks(cell.ranks).run(train_cell, cell)
    loss_error = max(abs(a["losses"][0] / wanted_loss - 1) for a in answers)
    return loss_error, *max(worst_error(a["gradients"], wanted) for a in answers)


def check_exact(cell: Cell, ranks) -> None:  # type: ignore[no-untyped-def]
    loss_error, error, name = measure(cell, ranks)
    assert loss_error <= 1e-6
    assert error <= 1e-5, name


@pytest.mark.parametrize("cell", PAIRWISE, ids=str)
def test_gradients_equal_the_big_batch(cell: Cell, ranks) -> None:  # type: ignore[no-untyped-def]
    check_exact(cell, ranks)


@pytest.mark.slow
@pytest.mark.parametrize("cell", FULL + WIDE, ids=str)
def test_gradients_equal_the_big_batch_everywhere(cell: Cell, ranks) -> None:  # type: ignore[no-untyped-def]
    check_exact(cell, ranks)


def test_pairwise_covers_every_pair() -> None:
    axes = [
        lambda c: c.loss,
        lambda c: c.ranks,
        lambda c: c.chunks,
        lambda c: c.strategy,
        lambda c: c.dropout,
    ]
    for a, b in itertools.combinations(axes, 2):
        assert {(a(c), b(c)) for c in FULL} == {(a(c), b(c)) for c in PAIRWISE}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_bf16_points_the_same_way(strategy, ranks) -> None:  # type: ignore[no-untyped-def]
    cell = Cell("infonce", 2, 4, strategy, False, "bf16")
    _, wanted = reference_gradients(cell)
    found = ranks(2).run(train_cell, cell)[0]["gradients"]
    a = torch.cat([found[n].double().flatten() for n in wanted])
    b = torch.cat([wanted[n].double().flatten() for n in wanted])
    assert float(torch.nn.functional.cosine_similarity(a, b, dim=0)) >= 0.999


@pytest.mark.parametrize(
    "cell",
    [
        Cell("infonce", 2, 4, "torch", True, fault="replay_seed"),
        Cell("infonce", 2, 4, 2, True, fault="replay_seed"),
        Cell("infonce", 2, 1, "torch", fault="rank_offset"),
        Cell("siglip", 2, 4, 1, fault="rank_offset"),
        Cell("infonce", 2, 1, 1, fault="scatter_reduce"),
        Cell("siglip", 2, 4, "torch", fault="scatter_reduce"),
        Cell("infonce", 2, 4, 1, fault="column_reduce"),
    ],
    ids=str,
)
def test_a_seeded_fault_is_seen(cell: Cell, ranks) -> None:  # type: ignore[no-untyped-def]
    _, error, _ = measure(cell, ranks)
    assert error > 1e-3


class Term(AddOn):
    """Brings one loss term."""

    def __init__(self, name: str) -> None:
        self.name = name

    def loss_terms(self, features: Features) -> dict[str, Tensor]:
        return {self.name: features.logit_scale * 0}


@pytest.mark.parametrize("names", [("mine", "mine"), ("contrastive", "mine")])
def test_a_loss_term_never_replaces_another(names: tuple[str, str]) -> None:
    strategy = build_strategy(tiny_model(), World(), "torch")
    step = train_step_for(strategy, None, [Term(name) for name in names])
    with pytest.raises(ConfigError, match=f"Term.*'{names[0]}'.*there already"):
        step(tiny_batch(4), 0, 1e-3)
