"""Plain data parallel: the reference every other strategy is compared with, and the fallback."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from clipkit.contracts import Batch, Outputs
from clipkit.dist.group import World
from clipkit.engine.strategy import Fragment, Strategy
from clipkit.towers.dual import DualEncoder


class TorchStrategy(Strategy):
    """DDP where there are several ranks, the bare module where there is one.

    Args:
        model: On its device.
        optimizer: Over the model's parameters.
        world: The ranks.
        clip_norm: Global gradient norm bound, None for none.
    """

    def __init__(
        self,
        model: DualEncoder,
        optimizer: torch.optim.Optimizer,
        world: World,
        *,
        clip_norm: float | None,
    ) -> None:
        self.model, self.optimizer, self.world, self.clip_norm = model, optimizer, world, clip_norm
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self._ddp = (
            DistributedDataParallel(model, broadcast_buffers=False)
            if world.world_size > 1
            else None
        )

    def forward(self, batch: Batch, *, last: bool = False) -> Outputs:
        """See Strategy."""
        if self._ddp is None or not torch.is_grad_enabled():
            return self.model(batch)
        with contextlib.nullcontext() if last else self._ddp.no_sync():
            return self._ddp(batch)

    def backward(self, surrogate: Tensor, *, last: bool) -> None:
        """See Strategy."""
        surrogate.backward()

    def step(self, lr: float) -> tuple[bool, float]:
        """See Strategy."""
        bound = float("inf") if self.clip_norm is None else self.clip_norm
        norm = float(torch.nn.utils.clip_grad_norm_(self._trained, bound))
        applied = norm == norm and norm != float("inf")
        if applied:
            self.set_lr(lr)
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return applied, norm

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        """See Strategy."""
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None:
                yield name, parameter.grad.detach().clone()

    def fragments(self, only: str | None = None) -> Iterator[Fragment]:
        """See Strategy."""
        yield from replicated_fragments(self, only)

    def refresh_weights(self, only: str | None = None) -> None:
        """The masters are the weights."""

    @contextlib.contextmanager
    def full_parameters(self) -> Iterator[None]:
        """See Strategy."""
        yield


def replicated_fragments(strategy: Strategy, only: str | None) -> Iterator[Fragment]:
    """Whole parameters, the same on every rank."""
    for name, parameter in strategy.model.named_parameters():
        if only not in (None, name):
            continue
        moments = {}
        if parameter.requires_grad:
            moments = {k: v.view(-1) for k, v in strategy.init_moments(parameter).items()}
        yield Fragment(name, tuple(parameter.shape), 0, parameter.detach().view(-1), moments, True)
