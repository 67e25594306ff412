"""The contract between the step and whoever owns parameters, gradients and moments."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from clipkit.contracts import Batch, Outputs
from clipkit.dist.group import World
from clipkit.towers.dual import DualEncoder

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class Fragment:
    """A range of one flattened parameter, held by this rank in fp32.

    Attributes:
        name: Of the parameter.
        shape: Of the whole parameter.
        start: First element of the range.
        master: 1-D live view of the weights.
        moments: "exp_avg" and "exp_avg_sq" -> 1-D live view; empty for a frozen parameter.
        replicated: Whether every rank holds this same range.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    master: Tensor
    moments: dict[str, Tensor]
    replicated: bool

    def share(self, rank: int, world_size: int) -> tuple[int, int]:
        """(offset, length) of the part of this range that `rank` owns."""
        if not self.replicated:
            return 0, self.master.numel()
        per = -(-self.master.numel() // world_size)
        low = min(rank * per, self.master.numel())
        return low, min(per, self.master.numel() - low)


class Strategy(ABC):
    """Runs the model, applies its gradients; those given to `backward` are averaged over ranks."""

    model: DualEncoder
    optimizer: torch.optim.Optimizer
    world: World
    stage: int = 0  # of ZeRO; 0 where nothing is sharded

    @abstractmethod
    def forward(self, batch: Batch, *, last: bool = False) -> Outputs:
        """The only way into the model; `last`: this forward's backward is the step's last."""

    @abstractmethod
    def backward(self, surrogate: Tensor, *, last: bool) -> None:
        """Accumulate this chunk's gradients; with `last`, reduce over ranks."""

    @abstractmethod
    def step(self, lr: float) -> tuple[bool, float]:
        """Clip, update, clear gradients. Returns (applied, gradient norm).

        A non-finite norm applies nothing.
        """

    @abstractmethod
    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        """(name, full averaged gradient) between last backward and `step`, on every rank."""

    @abstractmethod
    def fragments(self, only: str | None = None) -> Iterator[Fragment]:
        """What this rank holds, trainable and frozen parameters alike; `only` names one."""

    @abstractmethod
    def refresh_weights(self, only: str | None = None) -> None:
        """Copy the masters, written from outside, into the weights the forward uses."""

    @abstractmethod
    def full_parameters(self) -> AbstractContextManager[None]:
        """Within it, every parameter of `model` has all its elements (read only)."""

    def optimizer_steps(self) -> int:
        """Updates the optimizer has made."""
        return max(
            (int(state["step"]) for state in self.optimizer.state.values() if state), default=0
        )

    def restore_optimizer(self, steps: int) -> None:
        """Tell the optimizer how many updates its moments have seen."""
        for state in self.optimizer.state.values():
            state["step"].fill_(float(steps))

    def master_shards(self) -> Iterator[tuple[str, slice, Tensor]]:
        """(name, element range, 1-D fp32 view) of the trainable parameters this rank owns."""
        for f in self.fragments():
            if f.moments:
                low, length = f.share(self.world.rank, self.world.world_size)
                yield (
                    f.name,
                    slice(f.start + low, f.start + low + length),
                    f.master[low : low + length],
                )

    def clamp_(self, name: str, maximum: float) -> None:
        """Bound a parameter from above, in the master and in the working copy."""
        changed = 0
        for f in self.fragments(only=name):
            if f.master.numel() and float(f.master.max()) > maximum:
                f.master.clamp_(max=maximum)
                changed = 1
        if self.world.max_int(changed):
            self.refresh_weights(only=name)

    def set_lr(self, lr: float) -> None:
        """Set every group's learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def init_moments(self, parameter: Tensor) -> dict[str, Tensor]:
        """The optimizer's state of one (flat) parameter, created as zeros where there is none."""
        state = self.optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)  # where fused AdamW wants it
            for key in MOMENTS:
                state[key] = torch.zeros_like(parameter)
        return {key: state[key] for key in MOMENTS}
