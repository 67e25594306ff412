"""The generated DeepSpeed config, the reduces of a step, and frozen towers at every stage."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from clipkit.checkpoint.verify import find_checkpoint
from clipkit.dist.group import World
from clipkit.engine.snapshot import restore
from clipkit.engine.strategy_deepspeed import engine_config
from clipkit.errors import ConfigError
from tests.engine.cells import build_strategy, close, full_model_state, local_rows, train_step_for
from tests.engine.strategy_cells import save
from tests.tiny_model import tiny_batch, tiny_model


def test_clipping_is_always_written() -> None:
    assert engine_config(4, 1, None, {})["gradient_clipping"] == 0.0
    assert engine_config(4, 1, 2.5, {})["gradient_clipping"] == 2.5


def test_single_keys_are_overridden_and_sections_merged() -> None:
    overrides = {"zero_optimization": {"overlap_comm": False}, "steps_per_print": 5}
    config = engine_config(4, 3, None, overrides)
    assert config["zero_optimization"] == {"stage": 3, "overlap_comm": False}
    assert config["steps_per_print"] == 5


@pytest.mark.parametrize(
    ("overrides", "instead"),
    [
        ({"train_batch_size": 7}, "train.global_batch_size"),
        ({"zero_optimization": {"stage": 3}}, "engine.zero_stage"),
        ({"bf16": {"enabled": True}}, "train.precision"),
    ],
)
def test_keys_that_clipkit_sets_are_refused(overrides: dict[str, Any], instead: str) -> None:
    with pytest.raises(ConfigError, match=instead):
        engine_config(4, 1, None, overrides)


def frozen_tower_round_trip(world: World, stage: int, folder: str) -> dict[str, Any]:
    """Train with a frozen image tower, save, restore into other weights."""
    states = []
    for seed in (0, 9):
        model = tiny_model(seed=seed)
        model.towers.visual.requires_grad_(False)
        strategy = build_strategy(model.train(), world, stage)
        if seed == 0:
            train_step_for(strategy, 4)(local_rows(world, tiny_batch(16)), 0, 1e-2)
            save(world, strategy, folder, 1)
        else:
            restore(find_checkpoint(folder), strategy, [])
        states.append(full_model_state(strategy))
        close(strategy)
    return {"equal": all(torch.equal(states[0][n], states[1][n]) for n in states[0])}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_frozen_towers_are_saved_and_restored(stage: int, ranks, tmp_path) -> None:  # type: ignore[no-untyped-def]
    assert all(a["equal"] for a in ranks(2).run(frozen_tower_round_trip, stage, str(tmp_path)))
