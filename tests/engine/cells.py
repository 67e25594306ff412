"""What a rank runs in the engine's multi-process tests: build a strategy, step, report."""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from clipkit.addons.base import AddOn
from clipkit.config.parts import build_part
from clipkit.contracts import Features
from clipkit.dist import collectives
from clipkit.dist.group import World
from clipkit.engine.step import StepResult, TrainStep
from clipkit.engine.strategy import Strategy
from clipkit.engine.strategy_deepspeed import DeepSpeedStrategy
from clipkit.engine.strategy_torch import TorchStrategy
from clipkit.optim.adamw import build_adamw
from clipkit.towers.dual import DualEncoder
from tests.tiny_model import tiny_batch, tiny_model

GLOBAL_BATCH = 16


@dataclass(frozen=True)
class Cell:
    """One point of the exactness grid. strategy: "torch" or the ZeRO stage."""

    loss: str = "infonce"
    ranks: int = 2
    chunks: int = 4
    strategy: str | int = "torch"
    dropout: bool = False
    precision: str = "fp32"
    fault: str = ""
    steps: int = 1
    batch: int = GLOBAL_BATCH
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        stage = self.strategy if self.strategy == "torch" else f"zero{self.strategy}"
        parts = [self.loss, f"n{self.ranks}", f"k{self.chunks}", stage]
        return "-".join(
            parts + ["dropout"] * self.dropout + [self.precision] + [self.fault] * bool(self.fault)
        )

    @property
    def local_batch(self) -> int:
        """Samples per rank."""
        return self.batch // self.ranks


def model_for(cell: Cell, dtype: torch.dtype = torch.float32) -> DualEncoder:
    """The cell's model, the same on every rank and in the reference."""
    autocast = torch.bfloat16 if cell.precision == "bf16" else None
    return tiny_model(
        dropout=0.2 if cell.dropout else 0.0,
        patch_dropout=0.4 if cell.dropout else None,
        bias=-2.0 if cell.loss == "siglip" else None,
        dtype=dtype,
        autocast=autocast,
    )


def build_strategy(
    model: DualEncoder, world: World, kind: str | int, lr: float = 1e-2, **kwargs: Any
) -> Strategy:
    """A strategy with AdamW and no clipping; ZeRO-3 keeps no parameter whole."""
    kwargs.setdefault("clip_norm", None)
    optimizer = build_adamw(model, lr=lr, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1)
    if kind == "torch":
        return TorchStrategy(model, optimizer, world, **kwargs)
    overrides = (
        {"zero_optimization": {"stage3_param_persistence_threshold": 0}} if kind == 3 else {}
    )
    return DeepSpeedStrategy(
        model,
        optimizer,
        world,
        zero_stage=int(kind),
        local_batch=GLOBAL_BATCH // world.world_size,
        overrides=overrides,
        **kwargs,
    )


def close(strategy: Strategy) -> None:
    """Free a DeepSpeed engine's hooks before the next cell."""
    if isinstance(strategy, DeepSpeedStrategy):
        strategy._engine.destroy()
    gc.collect()


def record_gradients(strategy: Strategy) -> dict[str, Tensor]:
    """Fill the returned dict with the full gradients each time the strategy is about to step."""
    seen: dict[str, Tensor] = {}
    step = strategy.step

    def recorded(lr: float) -> tuple[bool, float]:
        seen.update(strategy.gradients())
        return step(lr)

    strategy.step = recorded  # type: ignore[method-assign]
    return seen


def _scatter_without_sum(x: Tensor, world_size: int, rank: int) -> Tensor:
    return x.chunk(world_size)[rank] * world_size


@contextlib.contextmanager
def seeded_fault(kind: str) -> Iterator[None]:
    """Break one thing the exactness rests on."""
    counter = iter(range(10**6))
    faults = {
        "": contextlib.nullcontext(),
        "replay_seed": mock.patch("clipkit.engine.step.chunk_seed", lambda *_: next(counter)),
        "rank_offset": mock.patch.object(
            Features, "rows", property(lambda f: slice(0, f.num_rows))
        ),
        "scatter_reduce": mock.patch.object(collectives, "reduce_scatter", _scatter_without_sum),
        "column_reduce": mock.patch.object(collectives, "all_reduce", lambda x, _: x),
    }
    with faults[kind]:
        yield


def train_cell(world: World, cell: Cell) -> dict[str, Any]:
    """Run the cell's steps on this rank; returns losses and the last step's full gradients."""
    strategy = build_strategy(model_for(cell), world, cell.strategy)
    gradients = record_gradients(strategy)
    step = TrainStep(
        strategy,
        [(build_part("losses", {"kind": cell.loss}), 1.0)],
        [],
        chunk_size=math.ceil(cell.local_batch / cell.chunks),
    )
    first = world.rank * cell.local_batch
    results = []
    with seeded_fault(cell.fault):
        for number in range(cell.steps):
            batch = tiny_batch(cell.batch, seed=1 + number).rows(first, first + cell.local_batch)
            results.append(step(batch, number, 1e-3))
    close(strategy)
    return {
        "losses": [r.loss for r in results],
        "gradients": gradients,
        "ids": [r.ids_checksum for r in results],
    }


def weights_and_moments(strategy: Strategy) -> dict[str, Tensor]:
    """Copies of every fragment this rank holds."""
    return {
        f"{kind}/{f.name}@{f.start}": tensor.clone()
        for f in strategy.fragments()
        for kind, tensor in (("weight", f.master), *f.moments.items())
    }


def train_step_for(
    strategy: Strategy,
    chunk_size: int | None,
    addons: list[AddOn] | None = None,
    loss: str = "infonce",
) -> TrainStep:
    """A TrainStep with one loss."""
    return TrainStep(
        strategy, [(build_part("losses", {"kind": loss}), 1.0)], addons or [], chunk_size=chunk_size
    )


def local_rows(world: World, batch: Any) -> Any:
    """This rank's rows of a global batch."""
    local = batch.num_samples // world.world_size
    return batch.rows(world.rank * local, (world.rank + 1) * local)


def full_model_state(strategy: Strategy) -> dict[str, Tensor]:
    """Working weights of the whole model, as the forward would see them."""
    with strategy.full_parameters():
        return {n: p.detach().clone() for n, p in strategy.model.named_parameters()}


__all__ = ["Cell", "StepResult", "train_cell"]
