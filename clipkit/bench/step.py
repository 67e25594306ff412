"""Time and memory of one training step: plain, gradient-cached, and open_clip's accumulation.

Case "large towers": what caching costs where nothing else weighs. Case "large batch": towers about
as cheap as the loss, where the loss's own cost shows. open_clip's rows run its installed
`train_one_epoch` unmodified, on batches as its loader hands them out (float images).

Shapes: B batch, K chunks.
"""

from __future__ import annotations

import logging
import statistics
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F

from clipkit.bench.measure import by_turns, extra_mb, in_fresh_process
from clipkit.contracts import Batch
from clipkit.dist.group import World
from clipkit.engine.step import TrainStep
from clipkit.engine.strategy_torch import TorchStrategy
from clipkit.losses.infonce import InfoNCELoss
from clipkit.optim.adamw import build_adamw
from clipkit.towers.build import build_towers
from clipkit.towers.dual import DualEncoder

_CONTEXT, VOCABULARY, IMAGE = 8, 1000, 32
ADAMW: dict[str, Any] = {"lr": 1e-4, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.1}


@dataclass(frozen=True)
class Case:
    """Towers and a batch; `towers` is (width, layers) of image and text."""

    name: str
    batch: int
    chunks: int
    image: tuple[int, int]
    text: tuple[int, int]
    impls: tuple[str, ...]
    repeats: int
    patch_size: int = 8
    embed_dim: int = 512


CASES = (
    Case("large towers", 512, 8, (512, 8), (256, 4), ("plain", "cached"), 7),
    Case(
        "large batch",
        8192,
        8,
        (128, 1),
        (128, 1),
        ("naive loss", "plain", "cached", "open_clip plain", "open_clip accumulation"),
        5,
        patch_size=16,
    ),
)


def model_config(case: Case) -> dict[str, Any]:
    """An open_clip model_cfg."""
    (image_width, image_layers), (text_width, text_layers) = case.image, case.text
    return {
        "embed_dim": case.embed_dim,
        "vision_cfg": {
            "image_size": IMAGE,
            "patch_size": case.patch_size,
            "width": image_width,
            "layers": image_layers,
            "head_width": 64,
        },
        "text_cfg": {
            "context_length": _CONTEXT,
            "vocab_size": VOCABULARY,
            "width": text_width,
            "heads": text_width // 64,
            "layers": text_layers,
        },
    }


def _samples(batch: int) -> Batch:
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, 3, IMAGE, IMAGE), generator=g, dtype=torch.uint8)
    texts = torch.randint(1, VOCABULARY, (batch, 1, _CONTEXT), generator=g)
    return Batch({"image": images}, {"text": texts}, torch.arange(batch))


def clipkit_step(case: Case, chunks: int, device: str) -> Callable[[], None]:
    """One step of clipkit; K = 1 is plain."""
    torch.manual_seed(0)
    towers = build_towers(model_config(case))
    model = DualEncoder(towers.clip, mean=towers.mean, std=towers.std).to(device).train()
    world = World(device=torch.device(device))
    strategy = TorchStrategy(model, build_adamw(model, **ADAMW), world, clip_norm=None)
    step = TrainStep(strategy, [(InfoNCELoss(), 1.0)], [], chunk_size=case.batch // chunks)
    batch = _samples(case.batch)
    counter = iter(range(10**6))
    return lambda: None if step(batch, next(counter), 1e-4) else None


def open_clip_step(case: Case, accumulate: int, device: str) -> Callable[[], None]:
    """One optimizer step of open_clip's train_one_epoch, `accumulate` micro-batches."""
    import open_clip
    from open_clip_train.train import train_one_epoch

    logging.disable(logging.INFO)
    torch.manual_seed(0)
    config = model_config(case)
    model = open_clip.CLIP(**config, output_dict=True).to(device)
    samples, size = _samples(case.batch), case.batch // accumulate
    images = samples.images["image"].float() / 127.5 - 1
    texts = samples.texts["text"][:, 0]
    optimizer = torch.optim.AdamW(model.parameters(), fused=True, **ADAMW)

    class Loader(list):  # type: ignore[type-arg]
        num_batches, num_samples = accumulate, case.batch

    batches = Loader(
        (images[i : i + size], texts[i : i + size]) for i in range(0, case.batch, size)
    )
    data = {"train": SimpleNamespace(dataloader=batches, set_epoch=lambda epoch: None)}
    args = Namespace(
        device=device, precision="fp32", distill=False, accum_freq=accumulate, horovod=False,
        skip_scheduler=True, grad_clip_norm=None, rank=0, local_rank=0, log_local=False,
        log_every_n_steps=10**6, batch_size=size, world_size=1, wandb=False,
    )  # fmt: skip
    loss = open_clip.loss.ClipLoss()
    return lambda: train_one_epoch(model, data, loss, 0, optimizer, None, None, None, args)


def naive_loss(case: Case, device: str) -> Callable[[], None]:
    """The loss alone, forward and backward, for the size of the towers' share."""
    from clipkit.bench.loss import naive

    g = torch.Generator().manual_seed(0)
    rows = [
        F.normalize(torch.randn(case.batch, case.embed_dim, generator=g), dim=1)
        .to(device)
        .requires_grad_()
        for _ in range(2)
    ]
    scale = torch.tensor(14.3, device=device, requires_grad=True)
    return lambda: naive(rows[0], rows[1], scale, False).backward()


def build(case: Case, impl: str, device: str) -> Callable[[], None]:
    """A callable that makes one step."""
    makers: dict[str, Callable[[], Callable[[], None]]] = {
        "plain": lambda: clipkit_step(case, 1, device),
        "cached": lambda: clipkit_step(case, case.chunks, device),
        "open_clip plain": lambda: open_clip_step(case, 1, device),
        "open_clip accumulation": lambda: open_clip_step(case, case.chunks, device),
        "naive loss": lambda: naive_loss(case, device),
    }
    return makers[impl]()


def _memory(task: dict[str, Any]) -> dict[str, float]:
    """Of a second step: weights, gradients and moments are there, as in a long run."""
    call = build(_case(task), task["impl"], task["device"])
    if task["impl"] != "naive loss":
        call()
    return {"extra_mb": extra_mb(call, task["device"])}


def _time(task: dict[str, Any]) -> dict[str, list[tuple[float, float]]]:
    case = _case(task)
    calls = {impl: build(case, impl, task["device"]) for impl in task["impls"]}
    for call in calls.values():
        call()
    return by_turns(calls, case.repeats, task["device"])


def _case(task: dict[str, Any]) -> Case:
    return next(c for c in CASES if c.name == task["case"])


TASKS: dict[str, Callable[[dict[str, Any]], Any]] = {"step_memory": _memory, "step_time": _time}


def num_parameters(case: Case) -> tuple[int, int]:
    """Of the image tower, and of the whole model."""
    clip = build_towers(model_config(case)).clip
    image = sum(p.numel() for p in clip.visual.parameters())
    return image, sum(p.numel() for p in clip.parameters())


def rows(base: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One result after the other."""
    for case in CASES:
        task = {**base, "case": case.name}
        memory = {
            i: in_fresh_process({**task, "what": "step_memory", "impl": i})["extra_mb"]
            for i in case.impls
        }
        times = in_fresh_process({**task, "what": "step_time", "impls": case.impls})
        image, total = num_parameters(case)
        for impl in case.impls:
            cpu, wall = ([t[k] for t in times[impl]] for k in (0, 1))
            row = {
                "bench": "step",
                "case": case.name,
                "impl": impl,
                "batch": case.batch,
                "dim": case.embed_dim,
                "chunks": case.chunks if impl in ("cached", "open_clip accumulation") else 1,
                "image_tower_parameters": image,
                "parameters": total,
                "cpu_s": statistics.median(cpu),
                "wall_s": statistics.median(wall),
                "extra_mb": memory[impl],
                "repeats": case.repeats,
            }
            for peer in case.impls:
                if peer != impl:
                    pairs = [a[0] / b[0] for a, b in zip(times[impl], times[peer])]
                    row[f"cpu_ratio_to_{peer.replace(' ', '_')}"] = statistics.median(pairs)
            yield row
