"""Exponential moving average of the weights.

Each rank averages the slices it owns, at every ZeRO stage.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from clipkit.addons.base import AddOn, Masters, StepView


class ExponentialMovingAverage(AddOn):
    """Keeps w_ema <- decay * w_ema + (1 - decay) * w beside the trained weights.

    Saved with every checkpoint as kind "addon", names "ema/<parameter>".

    Args:
        decay: Weight of the past; it starts at (1 + step) / (10 + step) and grows to this.
    """

    def __init__(self, *, decay: float = 0.9999) -> None:
        self.decay = decay
        self._average: dict[tuple[str, int], Tensor] = {}

    def start(self, strategy: Masters) -> None:
        """Begin at the current weights."""
        self._average = {(n, s.start): t.detach().clone() for n, s, t in strategy.master_shards()}

    def after_step(self, result: StepView) -> None:
        """Move the average towards the new weights."""
        decay = min(self.decay, (1 + result.step) / (10 + result.step))
        for name, where, weight in result.strategy.master_shards():
            self._average[name, where.start].lerp_(weight.detach(), 1 - decay)

    def sharded_state(self) -> Iterator[tuple[str, int, Tensor]]:
        """(parameter name, first element, 1-D live view)."""
        for (name, start), tensor in self._average.items():
            yield name, start, tensor


PART = ExponentialMovingAverage
