"""Time and memory of one loss, forward and backward: the peers, and the tiled kernel.

Shapes: B batch, D embed dim.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from clipkit.bench.measure import by_turns, extra_mb, free_mb, in_fresh_process, timed
from clipkit.contracts import Features, Pair, Tiling
from clipkit.errors import ClipkitError

_STRIP = 1024
_PROBE = 4096
_SLOWEST_S = 300.0  # a peer expected to need more is left out, and the row says so


def naive(image: Tensor, text: Tensor, scale: Tensor, half: bool) -> Tensor:
    """The full matrix of logits, two cross entropies."""
    logits = scale * image @ text.T
    labels = torch.arange(len(image), device=image.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def open_clip_loss(image: Tensor, text: Tensor, scale: Tensor, half: bool) -> Tensor:
    """open_clip's ClipLoss as installed."""
    import open_clip

    return open_clip.loss.ClipLoss()(image, text, scale)


def checkpointed(image: Tensor, text: Tensor, scale: Tensor, half: bool) -> Tensor:
    """Strips of logits, each recomputed in backward."""

    def strip(rows: Tensor, columns: Tensor, start: Tensor) -> Tensor:
        labels = torch.arange(len(rows), device=rows.device) + start
        return F.cross_entropy(scale * rows @ columns.T, labels, reduction="sum")

    total = scale.new_zeros(())
    for rows, columns in ((image, text), (text, image)):
        for i in range(0, len(rows), _STRIP):
            total = total + checkpoint(strip, rows[i : i + _STRIP], columns, i, use_reentrant=False)
    return total / (2 * len(image))


def tiled(image: Tensor, text: Tensor, scale: Tensor, half: bool) -> Tensor:
    """clipkit's InfoNCE."""
    from clipkit.losses.infonce import InfoNCELoss

    tiling = Tiling(product_dtype=torch.bfloat16 if half else None)
    features = Features({"image": image[:, None], "text": text[:, None]}, scale, tiling=tiling)
    return InfoNCELoss()(features, Pair())["contrastive"]


IMPLEMENTATIONS: dict[str, Callable[[Tensor, Tensor, Tensor, bool], Tensor]] = {
    "naive": naive,
    "open_clip": open_clip_loss,
    "checkpointed": checkpointed,
    "tiled": tiled,
}


def _call(task: dict[str, Any], impl: str, batch: int) -> Callable[[], None]:
    """A forward and backward on features of `batch` rows."""
    device, half = task["device"], task["dtype"] == "bf16"
    g = torch.Generator().manual_seed(0)
    leaves = [
        F.normalize(torch.randn(batch, task["dim"], generator=g), dim=1).to(device).requires_grad_()
        for _ in range(2)
    ]
    scale = torch.tensor(task["scale"], device=device, requires_grad=True)
    run = IMPLEMENTATIONS[impl]

    def call() -> None:
        for leaf in (*leaves, scale):
            leaf.grad = None
        with torch.autocast(device, torch.bfloat16, enabled=half):
            loss = run(leaves[0], leaves[1], scale, half)
        loss.backward()

    return call


def _memory(task: dict[str, Any]) -> dict[str, float]:
    _call(task, task["impl"], 64)()  # libraries load what they need
    call = _call(task, task["impl"], task["batch"])
    found: list[Any] = []
    extra = extra_mb(lambda: found.append(timed(call, task["device"])), task["device"])
    return {"extra_mb": extra, "cpu_s": found[0].cpu_s, "wall_s": found[0].wall_s}


def _time(task: dict[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """(cpu, wall) of every implementation."""
    calls = {impl: _call(task, impl, task["batch"]) for impl in task["impls"]}
    for impl in calls:
        _call(task, impl, 256)()
    if task["batch"] <= 4096:
        for call in calls.values():
            call()
    return by_turns(calls, task["repeats"], task["device"])


TASKS: dict[str, Callable[[dict[str, Any]], Any]] = {"loss_memory": _memory, "loss_time": _time}


def repeats_for(batch: int) -> int:
    """Interleaved pairs."""
    return 5 if batch < 16384 else 3 if batch < 65536 else 1


def why_not(impl: str, batch: int, last_s: float, task: dict[str, Any]) -> str | None:
    """Why a peer cannot run at this size; `last_s`: what it would take, from the size before."""
    need = {"naive": 16, "open_clip": 16}.get(impl, 0) * batch**2 / 1e6
    if task["device"] == "cuda":
        have = torch.cuda.get_device_properties(0).total_memory / 1e6
    else:
        have = free_mb()
    if need > 0.8 * have:
        return f"needs about {need / 1e3:.0f} GB, {have / 1e3:.0f} GB are free"
    if impl != "tiled" and last_s > _SLOWEST_S:
        return f"would take about {last_s:.0f} CPU seconds"
    return None


def rows(sizes: list[int], base: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One result after the other: memory in a process of its own, time by turns in another."""
    expected: dict[str, float] = {}
    before = 0
    for batch in sorted(set(sizes)):
        task = {**base, "batch": batch}
        if not before and batch > _PROBE:  # nothing measured yet: a small run tells what to expect
            probe = {**task, "what": "loss_memory", "impl": "checkpointed", "batch": _PROBE}
            expected, before = {"checkpointed": in_fresh_process(probe)["cpu_s"]}, _PROBE
        growth = (batch / before) ** 2 if before else 0.0
        reasons = {
            i: why_not(i, batch, expected.get(i, 0.0) * growth, task) for i in IMPLEMENTATIONS
        }
        able = [i for i, reason in reasons.items() if reason is None]
        memory = {}
        for impl in able:
            try:
                memory[impl] = in_fresh_process({**task, "what": "loss_memory", "impl": impl})
            except ClipkitError as error:  # a row that fails costs no other row
                reasons[impl] = str(error)
        able = list(memory)
        repeats, times = repeats_for(batch), {}
        if repeats > 1 or len(able) > 1:
            times = in_fresh_process(
                {**task, "what": "loss_time", "impls": able, "repeats": repeats}
            )
        else:  # the process measured for memory ran it once; that is the one repeat
            times = {i: [(memory[i]["cpu_s"], memory[i]["wall_s"])] for i in able}
        for impl, reason in reasons.items():
            row = {"bench": "loss", "impl": impl, "batch": batch, "dim": base["dim"]}
            row |= {"dtype": base["dtype"], "scale": base["scale"]}
            if reason is not None:
                yield {**row, "skipped": reason, "cpu_s": None, "wall_s": None, "extra_mb": None}
                continue
            yield {**row, **_summary(impl, times, batch), "extra_mb": memory[impl]["extra_mb"]}
            expected[impl] = statistics.median(t[0] for t in times[impl])
        before = batch


def _summary(impl: str, times: dict[str, Any], batch: int) -> dict[str, Any]:
    cpu, wall = ([t[k] for t in times[impl]] for k in (0, 1))
    found = {
        "cpu_s": statistics.median(cpu),
        "wall_s": statistics.median(wall),
        "repeats": len(cpu),
        "ns_per_pair": statistics.median(wall) / batch**2 * 1e9,
    }
    for peer in ("naive", "open_clip"):
        if peer in times:
            for k, key in enumerate(("cpu", "wall")):
                pairs = [a[k] / b[k] for a, b in zip(times[impl], times[peer])]
                found[f"{key}_ratio_to_{peer}"] = statistics.median(pairs)
    return found
