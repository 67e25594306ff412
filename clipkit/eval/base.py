"""What every evaluator returns, and the interval that goes with a share."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass
class EvalResult:
    """Metrics of one task on one data set.

    Attributes:
        task: Kind of the evaluator.
        dataset: Name of the data set.
        metrics: Name -> value; "n" is the number of samples.
        intervals: Metric -> (low, high) at 95 %.
        provenance: Folder, number of classes and templates, and the like.
    """

    task: str
    dataset: str
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """CLIP_benchmark's keys, and ours beside them."""
        return {
            "dataset": self.dataset,
            "task": self.task,
            "metrics": self.metrics,
            "intervals": {k: list(v) for k, v in self.intervals.items()},
            **self.provenance,
        }


def wilson(share: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a share over n independent samples, Wilson 1927."""
    if n == 0:
        return 0.0, 1.0
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)
