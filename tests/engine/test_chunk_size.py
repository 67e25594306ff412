"""The largest chunk, from a made-up memory."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from clipkit.contracts import Batch, Outputs
from clipkit.dist.group import World
from clipkit.engine import chunk_size
from clipkit.engine.chunk_size import largest_chunk, measured_chunk
from clipkit.engine.strategy_torch import TorchStrategy
from clipkit.optim.adamw import build_adamw
from tests.tiny_model import tiny_batch, tiny_model


@pytest.mark.parametrize(
    ("rows", "room", "wanted"),
    [
        (1024, 10**9, 1024),  # all fit
        (1024, 100 * 1300 + 7000, 100),  # cut at 100: 11 chunks of 94
        (1024, 1, 1),  # none fit: one at a time, and the GPU will say so
        (5, 1, 5),  # too few to measure twice
    ],
)
def test_fits_and_is_even(rows: int, room: int, wanted: int) -> None:
    def graph_bytes(n: int) -> int:
        return 5000 + 1000 * n

    chunk = largest_chunk(rows, graph_bytes, room)
    assert chunk <= wanted
    assert chunk > wanted * 0.9 or chunk == 1
    count = -(-rows // chunk)
    assert chunk * count - rows < count, "equal chunks, the last at most `count` short"


def test_measured_once_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    step = SimpleNamespace(chunk_size="auto", text_chunk_size=None, prepared=lambda batch: batch)
    log = SimpleNamespace(say=said.append, warn=said.append)
    strategy = SimpleNamespace(stage=3)
    run = SimpleNamespace(strategy=strategy, world=None, train_step=step, log=log, auto_chunk=None)
    calls = iter([7])
    monkeypatch.setattr(chunk_size, "measured_chunk", lambda *_: next(calls))
    for _ in range(2):
        chunk_size.settle_chunk_size(run, tiny_batch(16))  # type: ignore[arg-type]
    assert step.chunk_size == 7
    assert run.auto_chunk == {"chunk_size": 7, "local_batch": 16}
    assert said[0] == "train.chunk_size=auto: 7 of 16 samples fit"
    assert len(said) == 2 and "ZeRO-3 with 3 chunks" in said[1]


def test_measured_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A made-up GPU: moments are there before the free memory is read, gradients are not."""
    model = tiny_model()
    optimizer = build_adamw(model, lr=1e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1)
    strategy = TorchStrategy(model, optimizer, World(), clip_norm=None)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    used = {"now": 0, "peak": 0}
    forward = strategy.forward

    def grows(batch: Batch, **how: bool) -> Outputs:
        used["peak"] = used["now"] + 1000 * batch.num_samples
        return forward(batch, **how)

    def free(device: object) -> tuple[int, int]:
        assert all(state for state in optimizer.state.values())
        return int((20 * 1000 * 1.3 + 4 * trained) / 0.9) + 100, 0

    for name, fake in {
        "memory_allocated": lambda device: used["now"],
        "max_memory_allocated": lambda device: used["peak"],
        "reset_peak_memory_stats": lambda device: None,
        "empty_cache": lambda: None,
        "mem_get_info": free,
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(strategy, "forward", grows)
    assert measured_chunk(strategy, tiny_batch(100), World()) == 20


@pytest.mark.parametrize(("local", "kept"), [(8, 4), (6, "auto")])
def test_a_resumed_run_keeps_what_was_measured_for_its_batch(local: int, kept: object) -> None:
    step = SimpleNamespace(chunk_size="auto")
    run = SimpleNamespace(
        train_step=step,
        global_batch_size=local,
        world=World(),
        log=SimpleNamespace(say=lambda text: None),
    )
    chunk_size.keep_chunk_size(run, {"chunk_size": 4, "local_batch": 8})  # type: ignore[arg-type]
    assert step.chunk_size == kept
