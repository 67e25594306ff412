"""What a rank runs to train the layers on a tiny model, with neighbours of noise."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipkit.addons.base import AddOn
from clipkit.addons.retrieval_fusion import HEAD, RetrievalFusion
from clipkit.contracts import Batch
from clipkit.dist.group import World
from clipkit.engine.snapshot import addon_scalars, restore, slices
from clipkit.engine.strategy import Strategy
from clipkit.towers.build import Towers, build_towers
from clipkit.towers.dual import DualEncoder
from tests.addons.retrieval_fusion.memories import unit
from tests.engine.cells import (
    build_strategy,
    close,
    full_model_state,
    local_rows,
    record_gradients,
    train_step_for,
)
from tests.fixtures_checkpoint import write_checkpoint
from tests.tiny_model import MODEL_CFG, tiny_batch, tiny_model

B, K, D = 16, 3, 16


@cache
def sketch() -> Towers:
    """Towers without weights."""
    with torch.device("meta"):
        return build_towers(MODEL_CFG)


def bare_addon(**settings: Any) -> RetrievalFusion:
    """Without files."""
    own = RetrievalFusion(memory="", neighbours="", k=K, num_heads=4, mlp_ratio=2.0, **settings)
    own.prepare(sketch())
    return own


def fusion_batch(seed: int = 1, negatives: int = 0, masked: bool = False) -> Batch:
    """Samples with 0 to 3 neighbours; with `masked`, none."""
    batch = tiny_batch(B, seed=seed, negatives=negatives)
    g = torch.Generator().manual_seed(seed)
    extras: dict[str, Tensor] = {}
    for i, side in enumerate(("image", "text")):
        counts = torch.randint(0, K + 1, (B, 1), generator=g) * (not masked)
        mask = torch.arange(K) < counts
        extras[f"{side}_neighbours"] = unit(B, K, D, seed=10 * seed + i) * mask[..., None]
        extras[f"{side}_neighbours_mask"] = mask
    return batch._replace(extras=extras)


def fusion_model(
    addon: RetrievalFusion, *, trained: bool = True, dtype: torch.dtype = torch.float32, **how: Any
) -> DualEncoder:
    """A tiny model with the add-on's layers, of noise where `trained`, frozen as it asks."""
    torch.manual_seed(5)
    heads = addon.heads()
    if trained:
        for p in heads[HEAD].parameters():
            nn.init.normal_(p, std=0.1)
    model = tiny_model(heads=heads, dtype=dtype, **how)
    if addon.freeze_towers:
        model.towers.requires_grad_(False)
    return model.train()


def count_forwards(model: DualEncoder) -> dict[str, int]:
    """Samples each tower has encoded, as it goes."""
    seen = {"image": 0, "text": 0}
    model.towers.visual.register_forward_hook(
        lambda *a: seen.update(image=seen["image"] + len(a[2]))
    )
    model.towers.ln_final.register_forward_hook(
        lambda *a: seen.update(text=seen["text"] + len(a[2]))
    )
    return seen


def train_heads(
    world: World,
    kind: str | int,
    chunks: int,
    steps: int,
    settings: dict[str, Any],
    how: dict[str, Any],
) -> dict[str, Any]:
    """Losses, terms and gradients of the last step, tower forwards, towers that moved."""
    addon = bare_addon(**settings)
    how = dict(how)
    loss = how.pop("loss", "infonce")
    masked, negatives = how.pop("masked", False), how.pop("negatives", 0)
    model = fusion_model(addon, bias=-2.0 if loss == "siglip" else None, **how)
    forwards = count_forwards(model)
    strategy = build_strategy(model, world, kind)
    first = full_model_state(strategy)
    gradients = record_gradients(strategy)
    step = train_step_for(strategy, B // world.world_size // chunks, [addon], loss)
    results = [
        step(local_rows(world, fusion_batch(1 + i, negatives, masked)), i, 1e-2)
        for i in range(steps)
    ]
    forwards = dict(forwards)
    now = full_model_state(strategy)
    moved = {n for n, t in now.items() if not torch.equal(t, first[n])}
    training = {n for n, m in model.named_modules() if m.training}
    close(strategy)
    return {
        "losses": [r.loss for r in results],
        "terms": results[-1].terms,
        "gradients": gradients,
        "forwards": forwards,
        "moved": moved,
        "training": training,
    }


def _strategy(world: World, kind: str | int) -> tuple[RetrievalFusion, Strategy]:
    addon = bare_addon(query_dropout=0.25)
    return addon, build_strategy(fusion_model(addon), world, kind)


def _steps(
    world: World, strategy: Strategy, addon: AddOn, numbers: range
) -> tuple[list[float], dict[str, Tensor]]:
    step = train_step_for(strategy, 4, [addon])  # the same chunks, so the same draws, anywhere
    losses = [step(local_rows(world, fusion_batch(1 + i)), i, 1e-2).loss for i in numbers]
    return losses, full_model_state(strategy)


def save_heads(world: World, kind: str | int, folder: str) -> dict[str, Any]:
    """Two steps, a checkpoint, two more."""
    addon, strategy = _strategy(world, kind)
    _steps(world, strategy, addon, range(2))
    with strategy.full_parameters():
        layers = copied_layers(addon)
    write_checkpoint(
        Path(folder),
        2,
        slices=slices(strategy, [addon]),
        state={
            "step": 2,
            "optimizer_steps": strategy.optimizer_steps(),
            "addons": addon_scalars([addon]),
        },
        model_config={"model_cfg": MODEL_CFG},
        world=world,
        keep=2,
    )
    losses, weights = _steps(world, strategy, addon, range(2, 4))
    close(strategy)
    return {"losses": losses, "weights": weights, "layers": layers}


def resume_heads(world: World, kind: str | int, checkpoint: str) -> dict[str, Any]:
    """The two further steps out of the checkpoint."""
    addon, strategy = _strategy(world, kind)
    restore(Path(checkpoint), strategy, [addon])
    losses, weights = _steps(world, strategy, addon, range(2, 4))
    close(strategy)
    return {"losses": losses, "weights": weights}


def copied_layers(addon: RetrievalFusion) -> dict[str, Tensor]:
    """Weights of the layers, gathered before."""
    assert addon._heads is not None
    return {n: p.detach().clone() for n, p in addon._heads.named_parameters()}
