"""Which checkpoints stay: the newest that verify, every m-th, and the best by a metric.

No torch here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipkit.checkpoint.verify import (
    list_checkpoints,
    read_json,
    step_of,
    verify_checkpoint,
)
from clipkit.checkpoint.write import discard
from clipkit.errors import CheckpointError

SCORES = "scores"  # in state.json: metric -> step -> value, of this and earlier steps


@dataclass(frozen=True)
class Retention:
    """What to keep.

    Attributes:
        keep: Newest valid checkpoints.
        keep_every: Multiples of this step stay for good; 0: none.
        best: Metric, "<evaluation>/<metric>", whose best checkpoint stays; None: none.
        best_mode: "max" or "min".
    """

    keep: int = 2
    keep_every: int = 0
    best: str | None = None
    best_mode: str = "max"

    def reasons(
        self, steps: list[int], valid: Callable[[int], bool], scores: dict[int, float]
    ) -> dict[int, str]:
        """Why each of some checkpoints stays; those left out are to go.

        A damaged one never counts. None goes while fewer than `keep` valid ones are newer, so that
        nothing is read when there are no more than `keep`.

        Args:
            steps: Of all checkpoints.
            valid: Whether the one of a step verifies; asked for few of them.
            scores: Step -> value of `best`.
        """
        if len(steps) <= self.keep:
            return dict.fromkeys(steps, "newest")
        stay: dict[int, str] = {}
        newest_first, counted = sorted(steps, reverse=True), 0
        for step in newest_first:
            if counted == self.keep:
                break
            good = valid(step)
            counted += good
            stay[step] = "newest" if good else "not valid, too few newer ones are"
        for step in newest_first:
            if step not in stay and self.keep_every and step % self.keep_every == 0:
                stay[step] = f"every {self.keep_every}"
        sign = 1 if self.best_mode == "max" else -1
        ranked = sorted((s for s in steps if s in scores), key=lambda s: (sign * scores[s], s))
        for step in reversed(ranked):
            if stay.get(step) == "newest" or valid(step):
                stay[step] = f"best {self.best}" if step not in stay else f"{stay[step]}, best"
                break
        return stay


def metric_of(results: dict[str, dict[str, float]], name: str) -> float | None:
    """A run's result by "<evaluation>/<metric>"; None where it was not measured."""
    for evaluation, metrics in results.items():
        for metric, value in metrics.items():
            if f"{evaluation}/{metric}" == name and value == value:
                return float(value)
    return None


def read_scores(run_dir: str | Path, metric: str | None) -> dict[int, float]:
    """Step -> value of a metric, as the states of the run's checkpoints tell it."""
    scores: dict[int, float] = {}
    for folder in list_checkpoints(run_dir) if metric else []:
        with contextlib.suppress(CheckpointError, AttributeError, TypeError, ValueError):
            state: dict[str, Any] = read_json(folder / "state.json")
            found = state.get(SCORES, {}).get(metric, {})
            scores.update({int(step): float(value) for step, value in found.items()})
    return scores


def is_valid(folder: Path) -> bool:
    """Whether every file of a checkpoint, read and hashed, is as it was written."""
    try:
        verify_checkpoint(folder)
    except CheckpointError:
        return False
    return True


def explain(
    run_dir: str | Path,
    retention: Retention,
    scores: dict[int, float],
    until: int | None = None,
) -> tuple[dict[Path, str], list[Path]]:
    """Why checkpoints of a run stay, and those that are to go, oldest first.

    Args:
        run_dir: The run folder.
        retention: What to keep.
        scores: Step -> value of its metric.
        until: Leave those of later steps alone, and do not count them: the one just written must
            stay, also when the run went back to before damaged ones. None: look at all.
    """
    folders = {step_of(folder): folder for folder in list_checkpoints(run_dir)}
    steps = [step for step in folders if until is None or step <= until]
    stay = retention.reasons(steps, lambda step: is_valid(folders[step]), scores)
    go = [folders[step] for step in sorted(steps) if step not in stay]
    return {folders[step]: why for step, why in stay.items()}, go


def prune(
    run_dir: str | Path,
    retention: Retention,
    scores: dict[int, float],
    until: int | None = None,
) -> list[Path]:
    """Remove what need not stay, oldest first; the caller is the only writer.

    Returns:
        What was removed.

    Raises:
        OSError: One cannot be removed; the next prune tries again.
    """
    _, go = explain(run_dir, retention, scores, until)
    for folder in go:
        discard(folder, until)
    return go
