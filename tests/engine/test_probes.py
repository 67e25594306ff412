"""What the contracts must carry, about 30 lines each: 4 chunks on 2 ranks against one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from clipkit.dist.group import World
from tests.engine.cells import build_strategy, close, local_rows, record_gradients, train_step_for
from tests.engine.probe_addons import PROBES
from tests.tiny_model import MODEL_CFG, tiny_batch, tiny_model

LAYOUTS = {
    "extra_texts": 2,
    "second_view": 1,
    "uniformity": 2,
    "captioning": 3,
    "adapter": 3,
    "distillation": "torch",
    "queue": 0,
    "ema": 3,
}


def probe(world: World, name: str, kind: str | int, chunks: int, steps: int) -> dict[str, Any]:
    """Losses, terms, last gradients and what the probe itself kept."""
    torch.manual_seed(3)
    addon = PROBES[name](**({"decay": 0.9} if name == "ema" else {}))
    model = _convolutional() if name == "second_view" else tiny_model(heads=addon.heads())
    if name == "adapter":
        model.towers.requires_grad_(False)
        model.train()
    forwards = {"image": 0, "text": 0}
    model.towers.visual.register_forward_hook(
        lambda *a: forwards.update(image=forwards["image"] + len(a[2]))
    )
    model.towers.ln_final.register_forward_hook(
        lambda *a: forwards.update(text=forwards["text"] + len(a[2]))
    )
    strategy = build_strategy(model, world, kind)
    gradients = record_gradients(strategy)
    addon.start(strategy)
    step = train_step_for(strategy, 16 // world.world_size // chunks, [addon])
    results = [step(local_rows(world, _batch(name, i)), i, 1e-2) for i in range(steps)]
    kept = {}
    for n, start, t in addon.sharded_state():
        low, total = start, torch.zeros(10**5)
        total[low : low + len(t)] = t
        kept[n] = world.sum_(total) if kind != "torch" or world.world_size > 1 else total
    close(strategy)
    calls = addon.teacher.calls if name == "distillation" else 0
    return {
        "losses": [r.loss for r in results],
        "terms": results[-1].terms,
        "gradients": gradients,
        "kept": kept,
        "forwards": forwards,
        "calls": calls,
    }


def _batch(name: str, step: int):  # type: ignore[no-untyped-def]
    batch = tiny_batch(16, seed=20 + step, negatives=3 if name == "extra_texts" else 0)
    if name == "second_view":
        g = torch.Generator().manual_seed(step)
        big, small = (
            torch.randint(0, 256, (16, 3, s, s), generator=g, dtype=torch.uint8) for s in (64, 32)
        )
        return batch._replace(images={"image": big, "small": small})
    return batch


def _convolutional():  # type: ignore[no-untyped-def]
    from clipkit.towers.build import build_towers
    from clipkit.towers.dual import DualEncoder

    torch.manual_seed(0)
    towers = build_towers(
        {**MODEL_CFG, "vision_cfg": {"timm_model_name": "test_convnext", "image_size": 64}}
    )
    return DualEncoder(towers.clip, mean=towers.mean, std=towers.std).train()


@pytest.mark.parametrize("name", PROBES)
def test_probe(name: str, ranks) -> None:  # type: ignore[no-untyped-def]
    steps = 2 if name in ("queue", "ema") else 1
    wanted = ranks(1).run(probe, name, "torch", 1, steps)[0]
    for found in ranks(2).run(probe, name, LAYOUTS[name], 4, steps):
        assert found["losses"] == pytest.approx(wanted["losses"], rel=2e-6 if steps == 1 else 1e-4)
        assert found["terms"].keys() == wanted["terms"].keys()
        assert found["gradients"].keys() == wanted["gradients"].keys()
        total = torch.cat([g.flatten() for g in wanted["gradients"].values()]).norm()
        for parameter, gradient in wanted["gradients"].items():
            error = (found["gradients"][parameter] - gradient).norm()
            if gradient.norm() > 1e-6 * total:
                assert error <= (2e-5 if steps == 1 else 1e-2) * gradient.norm(), parameter
        for parameter, average in wanted["kept"].items():
            torch.testing.assert_close(found["kept"][parameter], average, rtol=0, atol=1e-3)


def test_forwards_are_counted(ranks) -> None:  # type: ignore[no-untyped-def]
    frozen = ranks(2).run(probe, "adapter", "torch", 4, 1)[0]["forwards"]
    assert frozen == {"image": 8, "text": 8}, "a frozen tower is encoded once"
    trained = ranks(2).run(probe, "uniformity", "torch", 4, 1)[0]["forwards"]
    assert trained == {"image": 14, "text": 14}, (
        "2 - 1/K forwards per sample: the last chunk keeps its graph"
    )


def test_the_teacher_runs_in_pass_one_only(ranks) -> None:  # type: ignore[no-untyped-def]
    assert ranks(2).run(probe, "distillation", "torch", 4, 1)[0]["calls"] == 4


def test_the_ema_lags_behind(ranks) -> None:  # type: ignore[no-untyped-def]
    kept = ranks(2).run(probe, "ema", 3, 4, 2)[0]["kept"]
    assert any(float(t.abs().sum()) > 0 for t in kept.values())
