"""A whole run inside a rank of the pool."""

from __future__ import annotations

from clipkit.config.load import load_config
from clipkit.dist.group import World
from clipkit.engine.build import build_run
from clipkit.engine.trainer import fit


def fit_in_pool(world: World, config: str, overrides: list[str]) -> str:
    """Build and fit; returns the outcome."""
    run = build_run(load_config(config, overrides), world)
    try:
        outcome = fit(run)
        run.status.finish(outcome)
        return outcome
    finally:
        run.log.close()
