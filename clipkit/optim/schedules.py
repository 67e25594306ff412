"""Learning rate as a pure function of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Warmup, then cosine decay, a constant, or stable-then-linear-decay ("wsd").

    Attributes:
        kind: "cosine", "constant" or "wsd" (warmup-stable-decay, Hu et al. 2024, arXiv 2404.06395).
        lr: Peak learning rate.
        min_lr: Where the decay ends.
        warmup_steps: Steps of linear warmup.
        total_steps: Length of the run.
        decay_steps: "wsd": length of the final decay.
    """

    kind: str
    lr: float
    min_lr: float
    warmup_steps: int
    total_steps: int
    decay_steps: int = 0

    def __call__(self, step: int) -> float:
        """Learning rate of step 0 .. total_steps - 1."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.kind == "cosine":
            start, length = self.warmup_steps, self.total_steps - self.warmup_steps
            share = 0.5 * (1 + math.cos(math.pi * (step - start) / max(length, 1)))
        elif self.kind == "wsd" and self.decay_steps:
            share = min(1.0, (self.total_steps - step) / self.decay_steps)
        else:
            share = 1.0
        return self.min_lr + (self.lr - self.min_lr) * share
