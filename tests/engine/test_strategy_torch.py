"""Plain data parallel in one process: clipping, skipping, what a fragment is."""

from __future__ import annotations

import math

import pytest
import torch

from clipkit.dist.group import World
from clipkit.engine.strategy import Fragment
from tests.engine.cells import build_strategy, train_step_for
from tests.tiny_model import tiny_batch, tiny_model


def test_clipping_bounds_the_update_and_reports_the_norm_before() -> None:
    norms = {}
    for clip in (None, 1e-3):
        strategy = build_strategy(tiny_model(), World(), "torch", clip_norm=clip)
        norms[clip] = train_step_for(strategy, None)(tiny_batch(8), 0, 1e-3).grad_norm
        # the first moment is 0.1 * the clipped gradient
        squares = sum(
            float((f.moments["exp_avg"] * 10).square().sum()) for f in strategy.fragments()
        )
        assert math.sqrt(squares) == pytest.approx(norms[clip] if clip is None else clip, rel=1e-3)
    assert norms[None] == pytest.approx(norms[1e-3])


def test_owned_shares_cover_a_replicated_parameter_once() -> None:
    fragment = Fragment("w", (7,), 0, torch.arange(7.0), {}, replicated=True)
    for world_size in (1, 2, 3, 8):
        shares = [fragment.share(rank, world_size) for rank in range(world_size)]
        covered = [i for low, length in shares for i in range(low, low + length)]
        assert covered == list(range(7))


def test_frozen_parameters_are_held_but_not_owned_as_masters() -> None:
    model = tiny_model()
    model.towers.visual.requires_grad_(False)
    strategy = build_strategy(model, World(), "torch")
    held = {f.name for f in strategy.fragments()}
    owned = {name for name, _, _ in strategy.master_shards()}
    assert held == {n for n, _ in model.named_parameters()}
    assert owned == {n for n, p in model.named_parameters() if p.requires_grad}
