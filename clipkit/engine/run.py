"""What a run is made of: `build.py` puts it together, the loop and its parts take it as one."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipkit.addons.base import AddOn
from clipkit.checkpoint.saver import Saver
from clipkit.dist.group import World
from clipkit.dist.watchdog import Watchdog
from clipkit.engine.build_data import Loader
from clipkit.engine.guard import Guard
from clipkit.engine.log import RunLog
from clipkit.engine.status import StatusFile
from clipkit.engine.step import TrainStep
from clipkit.engine.strategy import Strategy
from clipkit.eval.tasks import Evaluator
from clipkit.optim.schedules import Schedule
from clipkit.towers.dual import FeatureEncoder


@dataclass
class Run:
    """Everything `fit` needs.

    Attributes:
        step: Trained steps; also the data position, skipped batches included.
        saved: Trained steps at the last save.
        evaluated: Trained steps at the last evaluation.
        results: Of that evaluation: evaluation -> metric -> value.
        auto_chunk: What train.chunk_size=auto has measured.
    """

    folder: Path
    world: World
    strategy: Strategy
    train_step: TrainStep
    loader: Loader
    schedule: Schedule
    addons: list[AddOn]
    evaluators: list[Evaluator]
    encoder: FeatureEncoder
    model_config: dict[str, Any]
    log: RunLog
    guard: Guard
    saver: Saver
    status: StatusFile
    watchdog: Watchdog
    total_steps: int
    global_batch_size: int
    log_every: int = 1
    eval_every: int = 0
    eval_batch_size: int = 64
    save_every: int = 0
    save_minutes: float = 0.0
    step: int = 0
    saved: int = 0
    saved_at: float = field(default_factory=time.monotonic)
    lock: object = None
    auto_chunk: dict[str, int] | None = None
    evaluated: int = 0
    results: dict[str, dict[str, float]] = field(default_factory=dict)


def due(every: int, step: int) -> bool:
    """Whether something that happens every `every` steps (0: never) happens after `step`."""
    return bool(every) and step % every == 0
