"""The part of a run that keeps record of it: log, status file, checkpoints, watchdog."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clipkit.checkpoint.saver import Saver
from clipkit.config.schema import RunConfig
from clipkit.dist.group import World
from clipkit.dist.watchdog import Watchdog
from clipkit.engine.log import RunLog
from clipkit.engine.status import StatusFile
from clipkit.errors import HANG_STATUS


def build_log(config: RunConfig, folder: Path, world: World) -> RunLog:
    """Metrics and events; rank 0 writes."""
    return RunLog(
        folder,
        main=world.is_main,
        progress=config.log.progress,
        wandb_mode=config.log.wandb,
        project=config.log.wandb_project,
        name=config.run.name,
        config=config.model_dump(mode="json"),
    )


def build_saver(config: RunConfig, folder: Path, world: World, log: RunLog) -> Saver:
    """Who writes checkpoints, and tells of it in the log."""
    c = config.checkpoint

    def tell(kind: str, text: str, values: dict[str, Any]) -> None:
        _event(log, kind, text, values, alarm=kind.endswith("_failed"))

    return Saver(
        folder,
        world,
        keep=c.keep,
        keep_every=c.keep_every,
        best=c.best,
        best_mode=c.best_mode,
        remote=c.remote,
        background=c.background,
        tell=tell,
    )


def build_watchdog(
    config: RunConfig, folder: Path, world: World, log: RunLog, status: StatusFile
) -> Watchdog:
    """Who ends a run that hangs; the rank that finds out tells, even if it is not the first."""

    def tell(kind: str, text: str, values: dict[str, Any]) -> None:
        if kind == "hang":
            log.take_over()
            status.take_over()
            status.finish("failed", exit_status=HANG_STATUS, error=text)
        _event(log, kind, text, values, alarm=True)

    return Watchdog(world, folder, timeout_s=config.engine.timeout_s, tell=tell)


def _event(log: RunLog, kind: str, text: str, values: dict[str, Any], *, alarm: bool) -> None:
    rest = {name: value for name, value in values.items() if name != "step"}
    log.event(kind, int(values.get("step", 0)), text, alarm=alarm, **rest)
