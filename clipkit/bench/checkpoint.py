"""What saving costs a training run: how long a save stops the loop, and until it is on disk.

One process trains a model of at least 50M parameters and saves after a step: "background" copies
to host memory and lets a thread write, "foreground" waits for the disk. A step beside the write is
measured too, because the thread takes its share of the cores.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from clipkit.bench.measure import in_fresh_process
from clipkit.checkpoint.saver import Saver
from clipkit.contracts import Batch
from clipkit.dist.group import World
from clipkit.engine.snapshot import slices
from clipkit.engine.step import TrainStep
from clipkit.engine.strategy_torch import TorchStrategy
from clipkit.losses.infonce import InfoNCELoss
from clipkit.optim.adamw import build_adamw
from clipkit.towers.arch import read_arch
from clipkit.towers.build import build_towers
from clipkit.towers.dual import DualEncoder

ARCH, BATCH, REPEATS = "ViT-B-32", 16, 5
IMPLS = ("background", "foreground")


def _training(arch: str | dict[str, Any], batch: int, device: str) -> tuple[Any, Callable[[], Any]]:
    """A strategy and a callable that makes one step."""
    torch.manual_seed(0)
    config = read_arch(arch) if isinstance(arch, str) else arch
    towers = build_towers(config)
    model = DualEncoder(towers.clip, mean=towers.mean, std=towers.std).to(device).train()
    optimizer = build_adamw(model, lr=1e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1)
    strategy = TorchStrategy(model, optimizer, World(device=torch.device(device)), clip_norm=1.0)
    step = TrainStep(strategy, [(InfoNCELoss(), 1.0)], [])
    size, text = config["vision_cfg"]["image_size"], config["text_cfg"]
    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
    texts = torch.randint(1, text["vocab_size"], (batch, 1, text["context_length"]))
    samples = Batch({"image": images}, {"text": texts}, torch.arange(batch))
    counter = iter(range(10**6))
    return strategy, lambda: step(samples, next(counter), 1e-4)


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Seconds of steps and saves; the first of each is left out."""
    strategy, step = _training(task["arch"], task["batch"], task["device"])
    found: dict[str, list[float]] = {
        name: [] for name in ("step_s", "blocked_s", "total_s", "step_beside_s")
    }
    with tempfile.TemporaryDirectory(dir=task.get("folder")) as folder:
        background = task["impl"] == "background"
        saver = Saver(folder, World(), keep=1, background=background)
        for number in range(task["repeats"] + 1):
            values = {"step_s": _seconds(step, task["device"])}
            saver.save(number, slices=slices(strategy, []), state={}, model_config={})
            values["blocked_s"] = saver.seconds["blocked"]
            values["step_beside_s"] = _seconds(step, task["device"])
            saver.wait()
            values["total_s"] = saver.seconds["total"]
            for name, value in values.items() if number else ():
                found[name].append(value)
        written = sum(p.stat().st_size for p in (saver.last or Path(folder)).iterdir())
    parameters = sum(p.numel() for p in strategy.model.parameters())
    return {**found, "bytes": written, "parameters": parameters}


def _seconds(call: Callable[[], Any], device: str) -> float:
    begin = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


TASKS: dict[str, Callable[[dict[str, Any]], Any]] = {"checkpoint": measure}


def rows(
    base: dict[str, Any], arch: str = ARCH, batch: int = BATCH, folder: str | None = None
) -> Iterator[dict[str, Any]]:
    """One result after the other, medians of `REPEATS`."""
    for impl in IMPLS:
        task = {**base, "what": "checkpoint", "impl": impl, "arch": arch, "batch": batch}
        found = in_fresh_process({**task, "repeats": REPEATS, "folder": folder})
        medians = {k: statistics.median(v) for k, v in found.items() if isinstance(v, list)}
        yield {
            "bench": "checkpoint",
            "impl": impl,
            "arch": arch,
            "batch": batch,
            "parameters": found["parameters"],
            "mb": found["bytes"] / 1e6,
            **medians,
            "blocked_s_max": max(found["blocked_s"]),
            "blocked_share_of_step": medians["blocked_s"] / medians["step_s"],
            "repeats": REPEATS,
        }
