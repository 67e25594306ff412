"""What a rank runs to look into a run that has ended."""

from __future__ import annotations

from typing import Any

from clipkit.config.load import load_config
from clipkit.dist.group import World
from clipkit.engine.build import build_run
from clipkit.engine.trainer import fit


def groups_after_loading(
    world: World, config: str, overrides: list[str]
) -> tuple[list[dict[str, Any]], set[int]]:
    """Resume, train to the end; every group's hyper-parameters, the steps its moments have seen."""
    run = build_run(load_config(config, overrides), world)
    fit(run)
    run.log.close()
    optimizer, names = run.strategy.optimizer, ("lr", "weight_decay", "betas", "eps")
    groups = [{name: group[name] for name in names} for group in optimizer.param_groups]
    return groups, {int(state["step"]) for state in optimizer.state.values() if state}
