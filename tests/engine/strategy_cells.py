"""What a rank runs in the strategies' tests."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from clipkit.checkpoint.read import CheckpointReader
from clipkit.checkpoint.verify import find_checkpoint
from clipkit.dist.group import World
from clipkit.engine.snapshot import restore, slices
from clipkit.engine.step import Asks
from clipkit.engine.strategy import Strategy
from clipkit.engine.strategy_deepspeed import DeepSpeedStrategy
from clipkit.eval.embed import Embedder
from clipkit.eval.zero_shot import ZeroShotEval
from clipkit.towers.dual import FeatureEncoder
from tests.engine.cells import (
    GLOBAL_BATCH,
    build_strategy,
    close,
    full_model_state,
    local_rows,
    train_step_for,
    weights_and_moments,
)
from tests.fixtures_checkpoint import write_checkpoint
from tests.tiny_model import tiny_batch, tiny_model

MAX_SCALE = math.log(100)


def _model(precision: str, **kwargs: Any) -> Any:
    return tiny_model(autocast=torch.bfloat16 if precision == "bf16" else None, **kwargs)


def _train(
    strategy: Strategy, world: World, first: int, last: int, chunk_size: int | None = 4
) -> list[float]:
    step = train_step_for(strategy, chunk_size)
    batches = [local_rows(world, tiny_batch(GLOBAL_BATCH, seed=10 + i)) for i in range(first, last)]
    return [step(b, first + i, 1e-2).loss for i, b in enumerate(batches)]


def evaluate_after_training(
    world: World, kind: str | int, precision: str, data: str
) -> tuple[torch.Tensor, dict[str, float]]:
    """After two steps, through the strategy: features of a fixed batch, and zero-shot metrics."""
    strategy = build_strategy(_model(precision), world, kind)
    _train(strategy, world, 0, 2)
    strategy.model.eval()
    with torch.no_grad():
        out = strategy.forward(tiny_batch(4, seed=99))
    features = torch.cat([out.embeddings["image"], out.embeddings["text"]])[:, 0].clone()
    encoder = FeatureEncoder(strategy.forward, _pixels, _tokens, world.device)
    metrics = ZeroShotEval(data, "classes").run(Embedder(encoder, world, batch_size=5)).metrics
    close(strategy)
    return features, metrics


def _pixels(image: Image.Image) -> torch.Tensor:
    pixels = torch.from_numpy(np.array(image.resize((16, 16)))).permute(2, 0, 1)
    return pixels.float() / 64 - 2


def _tokens(texts: list[str]) -> torch.Tensor:
    return torch.tensor([[1 + ord(c) % 63 for c in text.ljust(8)[:8]] for text in texts])


def clamp_a_driven_scale(world: World, kind: str | int, precision: str) -> dict[str, float]:
    """logit_scale, pushed over its bound from just below: master, working copy and forward."""
    model = _model(precision)
    with torch.no_grad():
        model.towers.logit_scale.fill_(MAX_SCALE - 1e-4)
    strategy = build_strategy(model, world, kind)
    step = train_step_for(strategy, None)
    aligned = local_rows(world, tiny_batch(GLOBAL_BATCH))
    clamp = strategy.clamp_

    def watched(name: str, maximum: float) -> None:
        for f in strategy.fragments(only=name):
            f.master.fill_(MAX_SCALE + 0.5)  # what an optimizer step may do to it
        strategy.refresh_weights(only=name)
        clamp(name, maximum)

    strategy.clamp_ = watched  # type: ignore[method-assign]
    result = step(aligned, 0, 1e-2)
    strategy.model.eval()
    with torch.no_grad():
        forward = strategy.forward(tiny_batch(2)).logit_scale.item()
    masters = [
        float(f.master.max())
        for f in strategy.fragments(only="towers.logit_scale")
        if f.master.numel()
    ]
    working = full_model_state(strategy)["towers.logit_scale"].item()
    close(strategy)
    return {
        "master": max(masters, default=MAX_SCALE),
        "working": working,
        "forward": forward,
        "applied": result.applied,
    }


def skip_a_bad_chunk(world: World, kind: str | int, precision: str) -> dict[str, Any]:
    """NaN pixels in one chunk of one rank, after two good steps."""
    strategy = build_strategy(_model(precision), world, kind)
    _train(strategy, world, 0, 2)
    before, working = weights_and_moments(strategy), full_model_state(strategy)
    steps = strategy.optimizer_steps()
    batch = local_rows(world, tiny_batch(GLOBAL_BATCH, seed=55))
    images = batch.images["image"].float() / 255
    if world.rank == world.world_size - 1:
        images[5] = float("nan")
    replayed: list[bool] = []
    backward = strategy.backward
    strategy.backward = lambda *a, **k: replayed.append(True)  # type: ignore[method-assign]
    result = train_step_for(strategy, 4)(batch._replace(images={"image": images}), 2, 1e-2)
    strategy.backward = backward  # type: ignore[method-assign]
    after, working_after = weights_and_moments(strategy), full_model_state(strategy)
    untouched = all(torch.equal(before[k], after[k]) for k in before)
    untouched &= all(torch.equal(working[k], working_after[k]) for k in working)
    resumed = _train(strategy, world, 3, 4)
    answer = {
        "applied": result.applied,
        "replayed": bool(replayed),
        "untouched": untouched,
        "steps": (steps, strategy.optimizer_steps()),
        "next": resumed,
    }
    close(strategy)
    return answer


def asked_of_one_rank(world: World, asks: Asks) -> list[tuple[bool, bool, int]]:
    """What this rank learns of nothing, and of what the last rank alone was asked."""
    step = train_step_for(build_strategy(_model("fp32"), world, "torch"), None)
    batch = local_rows(world, tiny_batch(GLOBAL_BATCH))
    mine = asks if world.rank == world.world_size - 1 else Asks()
    results = [step(batch, number, 1e-3, given) for number, given in enumerate((None, mine))]
    return [(r.stop, r.save, r.bad_samples) for r in results]


def overflow_in_the_replay(world: World, kind: str | int) -> dict[str, Any]:
    """Finite loss, a tower's backward is not: found by the optimizer step, skipped by all ranks."""
    strategy = build_strategy(_model("fp32"), world, kind)
    _train(strategy, world, 0, 1)
    before = weights_and_moments(strategy)
    if world.rank == 0:
        handle = strategy.model.towers.visual.ln_post.register_full_backward_hook(
            lambda module, grads_in, grads_out: tuple(g * float("inf") for g in grads_in)
        )
    result = train_step_for(strategy, 4)(
        local_rows(world, tiny_batch(GLOBAL_BATCH, seed=56)), 1, 1e-2
    )
    if world.rank == 0:
        handle.remove()
    after = weights_and_moments(strategy)
    untouched = all(torch.equal(before[k], after[k]) for k in before)
    resumed = _train(strategy, world, 2, 3)
    close(strategy)
    return {"applied": result.applied, "untouched": untouched, "next": resumed}


def train_and_save(
    world: World, kind: str | int, folder: str, steps: int, more: int
) -> dict[str, Any]:
    """Train, save at `steps`, go on for `more`; the later losses and the final weights."""
    strategy = build_strategy(_model("fp32"), world, kind)
    _train(strategy, world, 0, steps)
    save(world, strategy, folder, steps)
    reference = _deepspeed_full_state(strategy)
    losses = _train(strategy, world, steps, steps + more)
    weights = full_model_state(strategy)
    close(strategy)
    return {"losses": losses, "weights": weights, "deepspeed": reference}


def save(world: World, strategy: Strategy, folder: str, step: int) -> None:
    """A checkpoint with the least a run's state needs."""
    state = {"step": step, "optimizer_steps": strategy.optimizer_steps(), "addons": []}
    write_checkpoint(
        folder, step, slices=slices(strategy, []), state=state, model_config={}, world=world
    )


def _deepspeed_full_state(strategy: Strategy) -> dict[str, torch.Tensor]:
    """Weights and moments as DeepSpeed itself assembles them (stages 1 to 3)."""
    if not isinstance(strategy, DeepSpeedStrategy) or strategy.stage == 0:
        return {}
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    if strategy.stage < 3:  # DeepSpeed links the moments of the first group only
        strategy._engine.optimizer._hp_optimizer_states_linked = False
        strategy._engine.optimizer._lazy_init_hp_params_optimizer_state()
    found = {}
    for name, parameter in strategy.model.named_parameters():
        found[f"weight/{name}"] = safe_get_full_fp32_param(parameter).clone()
        for key in ("exp_avg", "exp_avg_sq"):
            found[f"{key}/{name}"] = safe_get_full_optimizer_state(parameter, key).clone()
    return found


def load_and_train(
    world: World, kind: str | int, folder: str, steps: int, more: int
) -> dict[str, Any]:
    """Start from other weights, restore, go on."""
    strategy = build_strategy(_model("fp32", seed=123), world, kind)
    restore(find_checkpoint(folder), strategy, [])
    losses = _train(strategy, world, steps, steps + more)
    weights = full_model_state(strategy)
    decay = {g["name"]: g["weight_decay"] for g in strategy.optimizer.param_groups}
    close(strategy)
    return {"losses": losses, "weights": weights, "decay": decay}


def read_all(folder: str) -> dict[str, torch.Tensor]:
    """Every weight and moment of a checkpoint."""
    reader = CheckpointReader(find_checkpoint(Path(folder)))
    return {
        f"{k}/{n}": reader.full(k, n)
        for k in ("weight", "exp_avg", "exp_avg_sq")
        for n in reader.names(k)
    }
