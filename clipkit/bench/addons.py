"""Time and memory of a training step with each add-on, beside the plain step.

Case "towers": the towers weigh most and share the work as those of ViT-B/32 do, three fifths of it
the image's. Case "large batch": towers about as cheap as the loss. What an add-on does in the
loader, such as editing captions, is not in a step.

Shapes: B batch, K negatives of a caption, L tokens, D embed dim, k neighbours.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from clipkit.addons.base import AddOn
from clipkit.addons.ema import ExponentialMovingAverage
from clipkit.addons.gap import GapClosing
from clipkit.addons.hard_negatives import HardNegatives
from clipkit.addons.retrieval_fusion import RetrievalFusion
from clipkit.bench.measure import by_turns, extra_mb, in_fresh_process
from clipkit.bench.step import ADAMW, CASES, IMAGE, VOCABULARY, Case, model_config
from clipkit.contracts import Batch
from clipkit.dist.group import World
from clipkit.engine.step import TrainStep
from clipkit.engine.strategy_torch import TorchStrategy
from clipkit.losses.infonce import InfoNCELoss
from clipkit.optim.adamw import build_adamw
from clipkit.towers.build import build_towers
from clipkit.towers.dual import DualEncoder

_CONTEXT, _NEIGHBOURS = 32, 10

ADDONS: dict[str, Callable[[], list[AddOn]]] = {
    "plain": list,
    "ema": lambda: [ExponentialMovingAverage()],
    "hard_negatives K=1": lambda: [HardNegatives(count=1, source="json")],
    "hard_negatives K=4": lambda: [HardNegatives(count=4, source="json")],
    "gap CUA": lambda: [GapClosing(uniformity=1.0, alignment=1.0)],
    "gap CUAXU": lambda: [GapClosing(uniformity=1.0, xuniformity=1.0, alignment=1.0)],
    "retrieval_fusion": lambda: [_fusion(freeze_towers=True)],
    "retrieval_fusion, trained towers": lambda: [_fusion(freeze_towers=False)],
}
TOWERS = Case("towers", 128, 1, (384, 6), (256, 6), tuple(ADDONS), 7)
LARGE_BATCH = replace(CASES[1], batch=4096, impls=tuple(ADDONS), repeats=5)


def _fusion(freeze_towers: bool) -> RetrievalFusion:
    return RetrievalFusion(
        memory="", neighbours="", k=_NEIGHBOURS, freeze_towers=freeze_towers
    )  # the batch brings the neighbours


def samples(case: Case, addons: list[AddOn]) -> Batch:
    """A batch of noise with what the add-ons read."""
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (case.batch, 3, IMAGE, IMAGE), generator=g, dtype=torch.uint8)
    batch = Batch({"image": images}, {}, torch.arange(case.batch))

    def tokens(count: int) -> torch.Tensor:
        return torch.randint(1, VOCABULARY, (case.batch, count, _CONTEXT), generator=g)

    batch.texts["text"] = tokens(1)
    masks, extras = {}, {}
    for addon in addons:
        if isinstance(addon, HardNegatives):
            batch.texts["negative"] = tokens(addon.count)
            masks["negative"] = torch.ones((case.batch, addon.count), dtype=torch.bool)
        if isinstance(addon, RetrievalFusion):
            shape = (case.batch, _NEIGHBOURS, case.embed_dim)
            for side in ("image", "text"):
                rows = F.normalize(torch.randn(shape, generator=g), dim=-1)  # (B, k, D)
                extras[f"{side}_neighbours"] = rows.half()
                extras[f"{side}_neighbours_mask"] = torch.ones(shape[:2], dtype=torch.bool)
    return batch._replace(masks=masks, extras=extras)


def build(case: Case, impl: str, device: str) -> tuple[Callable[[], object], float]:
    """(what makes one step, MB held between steps: weights, moments and an add-on's own)."""
    addons = ADDONS[impl]()
    config = model_config(case)
    config["text_cfg"]["context_length"] = _CONTEXT
    torch.manual_seed(0)
    towers = build_towers(config)
    towers.clip.requires_grad_(not any(addon.freeze_towers for addon in addons))
    with torch.device("meta"):
        sketch = build_towers(config)  # of which a fusion reads the embed dim, and no memory
    heads = {}
    for addon in addons:
        addon.prepare(sketch)
        heads.update(addon.heads())
    model = DualEncoder(towers.clip, mean=towers.mean, std=towers.std, heads=heads)
    model.to(device).train()
    world = World(device=torch.device(device))
    strategy = TorchStrategy(model, build_adamw(model, **ADAMW), world, clip_norm=None)
    for addon in addons:
        addon.start(strategy)
    step = TrainStep(strategy, [(InfoNCELoss(), 1.0)], addons)
    batch, counter = samples(case, addons), iter(range(10**6))
    numbers = sum(p.numel() * (3 if p.requires_grad else 1) for p in model.parameters())
    numbers += sum(t.numel() for addon in addons for _, _, t in addon.sharded_state())
    return lambda: step(batch, next(counter), 1e-4), numbers * 4 / 1e6


def _memory(task: dict[str, Any]) -> dict[str, float]:
    """Of a second step, as in a long run."""
    call, held = build(_case(task), task["impl"], task["device"])
    call()
    return {"extra_mb": extra_mb(call, task["device"]), "held_mb": held}


def _time(task: dict[str, Any]) -> dict[str, list[tuple[float, float]]]:
    case = _case(task)
    calls = {impl: build(case, impl, task["device"])[0] for impl in case.impls}
    for call in calls.values():
        call()
    return by_turns(calls, case.repeats, task["device"])


def _case(task: dict[str, Any]) -> Case:
    return TOWERS if task["case"] == TOWERS.name else LARGE_BATCH


TASKS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "addons_memory": _memory,
    "addons_time": _time,
}


def rows(base: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One result after the other; ratios are medians over interleaved steps."""
    for case in (TOWERS, LARGE_BATCH):
        task = {**base, "case": case.name}
        memory = {
            i: in_fresh_process({**task, "what": "addons_memory", "impl": i}) for i in case.impls
        }
        times = in_fresh_process({**task, "what": "addons_time"})
        for impl in case.impls:
            (cpu, wall), (plain_cpu, plain_wall) = (
                [[t[k] for t in times[name]] for k in (0, 1)] for name in (impl, "plain")
            )
            yield {
                "bench": "addons",
                "case": case.name,
                "impl": impl,
                "batch": case.batch,
                "dim": case.embed_dim,
                "cpu_s": statistics.median(cpu),
                "wall_s": statistics.median(wall),
                "cpu_ratio_to_plain": _ratio(cpu, plain_cpu),
                "wall_ratio_to_plain": _ratio(wall, plain_wall),
                **memory[impl],
                "repeats": case.repeats,
            }


def _ratio(times: list[float], plain: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(times, plain))
