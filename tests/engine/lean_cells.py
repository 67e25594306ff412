"""What a rank runs to count the step's work: collectives, loss evaluations, reduces, gathers."""

from __future__ import annotations

import weakref
from collections import Counter
from typing import Any
from unittest import mock

import torch
import torch.distributed as torch_dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from clipkit.dist import collectives
from clipkit.dist.group import World
from clipkit.engine.step import TrainStep
from clipkit.losses import tiled
from clipkit.losses.infonce import InfoNCELoss
from tests.engine.cells import build_strategy, close, local_rows, record_gradients
from tests.tiny_model import MODEL_CFG, tiny_batch, tiny_model

BATCH = 32
EMBED = MODEL_CFG["embed_dim"]
_REDUCES = ("all_reduce", "reduce_scatter_tensor", "_reduce_scatter_base", "reduce", "all_to_all")
_GATHERS = ("all_gather_into_tensor", "_all_gather_base", "all_gather")


def count_features(world: World, chunks: int, plan: str = "auto") -> dict[str, Any]:
    """(calls, bytes) of feature-sized collectives and the loss's evaluations in one step."""
    found: Counter[str] = Counter()

    def counted(name: str) -> Any:
        original = getattr(collectives, name)

        def call(x: Tensor, *args: Any) -> Tensor:
            if x.dim() == 2 and x.shape[1] == EMBED and x.is_floating_point():
                found[name] += 1
                found[f"{name}_bytes"] += x.numel() * x.element_size()
            return original(x, *args)

        return mock.patch.object(collectives, name, call)

    def evaluated(self: InfoNCELoss, *args: Any) -> Any:
        found["losses"] += 1
        return forward(self, *args)

    forward = InfoNCELoss.forward
    with (
        counted("all_gather"),
        counted("reduce_scatter"),
        mock.patch.object(InfoNCELoss, "forward", evaluated),
    ):
        _one_step(world, "torch", chunks, loss_plan=plan)
    return dict(found)


def _one_step(world: World, kind: str | int, chunks: int, **how: Any) -> dict[str, Tensor]:
    strategy = build_strategy(tiny_model(), world, kind)
    gradients = record_gradients(strategy)
    local = BATCH // world.world_size
    text_chunks = how.get("text_chunks")
    step = TrainStep(
        strategy,
        [(InfoNCELoss(), 1.0)],
        [],
        chunk_size=local // chunks,
        text_chunk_size=local // text_chunks if text_chunks else None,
    )
    step.tiling = step.tiling._replace(plan=how.get("loss_plan", "auto"))
    if "before" in how:
        how["before"](strategy)
    with how.get("during", mock.MagicMock()):
        step(local_rows(world, tiny_batch(BATCH)), 0, 1e-3)
    close(strategy)
    return gradients


def apart(world: World, kind: str | int, chunks: int, text_chunks: int) -> dict[str, Any]:
    """Gradients and forwards with towers cut into different chunks."""
    counts = {"image": 0, "text": 0}

    def watch(strategy: Any) -> None:
        towers = strategy.model.towers
        for name, part in (("image", towers.visual), ("text", towers.ln_final)):
            part.register_forward_hook(
                lambda *a, name=name: counts.update({name: counts[name] + len(a[2])})
            )

    gradients = _one_step(world, kind, chunks, text_chunks=text_chunks, before=watch)
    return {"gradients": gradients, "forwards": counts}


class _Calls:
    """Counts torch.distributed calls by kind, of tensors larger than a handful of numbers."""

    def __init__(self) -> None:
        self.reduces = self.gathers = self.gathered = 0
        self._patches: list[Any] = []

    def __enter__(self) -> _Calls:
        for names, kind in ((_REDUCES, "reduces"), (_GATHERS, "gathers")):
            for name in names:
                if hasattr(torch_dist, name):
                    self._patch(name, kind)
        return self

    def _patch(self, name: str, kind: str) -> None:
        original = getattr(torch_dist, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
            size = max((t.numel() for t in tensors), default=0)
            # features of this batch are EMBED wide; everything else that large is parameters
            if size > 64 and not any(t.dim() == 2 and t.shape[-1] == EMBED for t in tensors):
                setattr(self, kind, getattr(self, kind) + 1)
                self.gathered += size if kind == "gathers" else 0
            return original(*args, **kwargs)

        patch = mock.patch.object(torch_dist, name, call)
        patch.start()
        self._patches.append(patch)

    def __exit__(self, *_: object) -> None:
        for patch in self._patches:
            patch.stop()


def count_parameters(world: World, kind: str | int, chunks: int) -> dict[str, int]:
    """Reduces of gradients and gathers of parameters in one step."""
    calls = _Calls()
    reduced: Counter[str] = Counter()

    def hook(state, bucket):  # type: ignore[no-untyped-def]  # torch wants its own annotations
        reduced["buckets"] += 1
        return allreduce_hook(None, bucket)

    def register(strategy: Any) -> None:
        if kind == "torch":
            strategy._ddp.register_comm_hook(None, hook)

    _one_step(world, kind, chunks, before=register, during=calls)
    reduces = reduced["buckets"] if kind == "torch" else calls.reduces
    return {"reduces": reduces, "gathers": calls.gathers, "gathered": calls.gathered}


def alive_in_replay(world: World, keep: bool) -> list[bool]:
    """For each replayed chunk, whether the loss's state still lives; `keep` holds it on purpose."""
    states: list[Any] = []
    kept: list[Any] = []
    alive: list[bool] = []
    original = tiled._problem

    def remember(*args: Any, **kwargs: Any) -> Any:
        problem = original(*args, **kwargs)
        states.append(weakref.ref(problem))
        kept.extend([problem] * keep)
        return problem

    def watch(strategy: Any) -> None:
        forward = strategy.forward

        def call(batch: Any, **kwargs: Any) -> Any:
            if states:
                alive.append(states[0]() is not None)
            return forward(batch, **kwargs)

        strategy.forward = call

    with mock.patch.object(tiled, "_problem", remember):
        _one_step(world, "torch", 4, before=watch)
    return alive


def replayed_outputs(world: World, compiled: bool) -> dict[str, Any]:
    """Largest difference between pass 1 and the replay under dropout."""
    model = tiny_model(dropout=0.3)
    if compiled:
        model.towers.compile()
    strategy = build_strategy(model, world, "torch")
    seen: dict[int, list[Tensor]] = {}
    forward = strategy.forward

    def call(batch: Any, **kwargs: Any) -> Any:
        out = forward(batch, **kwargs)
        image = out.embeddings["image"].detach().clone()
        seen.setdefault(int(batch.ids[0]), []).append(image)
        return out

    strategy.forward = call  # type: ignore[method-assign]
    TrainStep(strategy, [(InfoNCELoss(), 1.0)], [], chunk_size=8)(tiny_batch(32), 0, 1e-3)
    pairs = [v for v in seen.values() if len(v) == 2]
    return {
        "pairs": len(pairs),
        "difference": max(float((a - b).abs().max()) for a, b in pairs),
        "spread": float((pairs[0][0][0] - pairs[0][0][1]).abs().max()),
        "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"],
    }


def plain_gradients(world: World) -> dict[str, Tensor]:
    """The step without chunks on one rank."""
    return _one_step(world, "torch", 1)
