"""What a rank runs to look into a run that has ended."""

from __future__ import annotations

from typing import Any

from clipkit.config.load import load_config
from clipkit.dist.group import World
from clipkit.engine.build import build_run
from clipkit.engine.trainer import fit


def groups_after_loading(world: World, config: str, overrides: list[str]) -> list[dict[str, Any]]:
    """Resume, train to the end; hyper-parameters of every group and the steps of its moments."""
    run = build_run(load_config(config, overrides), world)
    fit(run)
    run.log.close()
    optimizer = run.strategy.optimizer
    names = ("lr", "weight_decay", "betas", "eps")
    return [
        {name: group[name] for name in names}
        | {
            "steps": sorted(
                {int(optimizer.state[p]["step"]) for p in group["params"] if optimizer.state[p]}
            )
        }
        for group in optimizer.param_groups
    ]
