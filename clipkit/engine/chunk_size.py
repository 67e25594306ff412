"""The largest chunk that fits: two small forwards are measured, the rest is a straight line."""

from __future__ import annotations

from collections.abc import Callable

import torch

from clipkit.contracts import Batch
from clipkit.dist.group import World
from clipkit.engine.cautions import zero3_note
from clipkit.engine.run import Run
from clipkit.engine.strategy import Strategy

_PROBES = (8, 32)
_BACKWARD = 1.3  # bytes a backward needs, per byte of the graph it walks
_SHARE = 0.9  # of the free memory; the rest is for fragmentation and the loss's tiles
_GRADIENT_BYTES = 4  # per trained parameter; the moments are allocated by looking at fragments


def largest_chunk(num_rows: int, graph_bytes: Callable[[int], int], room: int) -> int:
    """Samples per chunk, so that equal chunks cover `num_rows` and each fits in `room` bytes.

    Args:
        num_rows: Local batch.
        graph_bytes: Peak bytes of a forward of n samples with gradient.
        room: Bytes there are.
    """
    low, high = (min(n, num_rows) for n in _PROBES)
    if low == high:
        return num_rows
    first, second = graph_bytes(low), graph_bytes(high)
    per_sample = max(1.0, (second - first) / (high - low))
    fixed = max(0.0, first - per_sample * low)
    fitting = int((room - fixed) / (per_sample * _BACKWARD))
    num_chunks = -(-num_rows // max(1, min(fitting, num_rows)))
    return -(-num_rows // num_chunks)


def measured_chunk(strategy: Strategy, batch: Batch, world: World) -> int:
    """The largest chunk of `batch` that fits on every rank's GPU."""
    device = world.device

    def graph_bytes(n: int) -> int:
        chunk = batch.rows(0, n).to(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        out = strategy.forward(chunk)
        peak = torch.cuda.max_memory_allocated(device) - before
        del out
        return peak

    torch.cuda.empty_cache()
    graph_bytes(1)  # libraries allocate their workspaces at first use
    trained = sum(f.master.numel() for f in strategy.fragments() if f.moments)
    room = int(torch.cuda.mem_get_info(device)[0] * _SHARE) - _GRADIENT_BYTES * trained
    return -world.max_int(-largest_chunk(batch.num_samples, graph_bytes, room))


def settle_chunk_size(run: Run, batch: Batch) -> None:
    """train.chunk_size=auto: measure once, on the first batch; a resumed run keeps its number."""
    step = run.train_step
    if step.chunk_size == "auto":
        step.chunk_size = measured_chunk(run.strategy, step.prepared(batch), run.world)
        run.auto_chunk = {"chunk_size": step.chunk_size, "local_batch": batch.num_samples}
        run.log.say(f"train.chunk_size=auto: {step.chunk_size} of {batch.num_samples} samples fit")
        for text in zero3_note(
            run.strategy.stage, batch.num_samples, step.chunk_size, step.text_chunk_size
        ):
            run.log.warn(text)


def keep_chunk_size(run: Run, measured: dict[str, int] | None) -> None:
    """A resumed run takes the chunk that was measured for the same local batch: the same masks."""
    local_batch = run.global_batch_size // run.world.world_size
    if measured and run.train_step.chunk_size == "auto" and measured["local_batch"] == local_batch:
        run.auto_chunk, run.train_step.chunk_size = measured, measured["chunk_size"]
        run.log.say(f"train.chunk_size=auto: {measured['chunk_size']}, as measured before")
