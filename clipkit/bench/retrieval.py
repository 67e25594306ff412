"""Time and memory of exact retrieval ranks beside the matrix product they rest on.

Shapes: N queries and as many targets, D embed dim.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from statistics import NormalDist
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.bench.measure import extra_mb, free_mb, in_fresh_process, timed
from clipkit.errors import ClipkitError
from clipkit.retrieval.ranks import ranks, recall_at

_BLOCK = 2048
CASES = ("paired", "random")  # random: the positive lies among all others, where scores are dense
_NAIVE_BYTES = 6  # per pair: fp32 scores, and a mask or two


def matmul(queries: Tensor, targets: Tensor) -> None:
    """All scores, tile after tile, each forgotten: what the product alone costs."""
    buffer = queries.new_empty(_BLOCK * _BLOCK)
    for rows in queries.split(_BLOCK):
        for columns in targets.split(_BLOCK):
            out = buffer[: len(rows) * len(columns)].view(len(rows), len(columns))
            torch.mm(rows, columns.T, out=out)


def one_way(queries: Tensor, targets: Tensor) -> Tensor:
    """clipkit's ranks of the queries."""
    return ranks(queries, targets, _pairs(queries), both=False, block=_BLOCK)[0]


def both_ways(queries: Tensor, targets: Tensor) -> Tensor:
    """clipkit's ranks of the queries, and of the targets from the same products."""
    return ranks(queries, targets, _pairs(queries), block=_BLOCK)[0]


def naive(queries: Tensor, targets: Tensor) -> Tensor:
    """Both ways from the full matrix, in fp32: ties that differ in the last bit are wins."""
    scores = queries @ targets.T
    best = scores.diagonal().clone()
    scores.diagonal().fill_(float("-inf"))
    forth = (scores >= best[:, None]).sum(dim=1)
    (scores >= best[None, :]).sum(dim=0)
    return forth


def _pairs(queries: Tensor) -> Tensor:
    return torch.arange(len(queries), device=queries.device)[:, None].expand(-1, 2)


IMPLEMENTATIONS: dict[str, Callable[[Tensor, Tensor], Tensor | None]] = {
    "matmul": matmul,
    "one_way": one_way,
    "both_ways": both_ways,
    "naive": naive,
}


def features(case: str, size: int, dim: int) -> tuple[Tensor, Tensor]:
    """(N, D) unit rows of both sides; paired: noise that leaves about half of the pairs first."""
    g = torch.Generator().manual_seed(0)
    queries, targets = (F.normalize(torch.randn(size, dim, generator=g), dim=1) for _ in range(2))
    if case == "paired":
        # of N cosines with standard deviation 1 / sqrt(D), the median of the largest
        cosine = NormalDist().inv_cdf(0.5 ** (1 / size)) / math.sqrt(dim)
        noise = math.sqrt(1 / min(max(cosine, 0.01), 0.99) ** 2 - 1)
        targets = F.normalize(queries + noise * targets, dim=1)
    return queries, targets


def _inputs(task: dict[str, Any]) -> tuple[Tensor, Tensor]:
    queries, targets = features(task["case"], task["batch"], task["dim"])
    return queries.to(task["device"]), targets.to(task["device"])


def _memory(task: dict[str, Any]) -> dict[str, float]:
    run = IMPLEMENTATIONS[task["impl"]]
    run(*(x.to(task["device"]) for x in features(task["case"], 64, task["dim"])))  # loads libraries
    rows = _inputs(task)
    return {"extra_mb": extra_mb(lambda: run(*rows), task["device"])}


def _time(task: dict[str, Any]) -> dict[str, Any]:
    """(cpu, wall) of every implementation by turns, so that all see the same machine."""
    rows = _inputs(task)
    small = tuple(x[:256] for x in rows)
    for impl in task["impls"]:
        IMPLEMENTATIONS[impl](small[0], small[1])
    times: dict[str, list[tuple[float, float]]] = {impl: [] for impl in task["impls"]}
    recall: dict[str, float | None] = {}
    for _ in range(task["repeats"]):
        for impl in task["impls"]:
            found: list[Tensor | None] = []
            usage = timed(partial(_keep, found, impl, rows), task["device"])
            times[impl].append((usage.cpu_s, usage.wall_s))
            recall[impl] = None if found[0] is None else recall_at(found[0], 1)
    return {"times": times, "recall": recall}


def _keep(found: list[Tensor | None], impl: str, rows: tuple[Tensor, Tensor]) -> None:
    found.append(IMPLEMENTATIONS[impl](*rows))


TASKS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "retrieval_memory": _memory,
    "retrieval_time": _time,
}


def why_not(impl: str, size: int, device: str) -> str | None:
    """Why an implementation cannot run at this size."""
    if impl != "naive":
        return None
    need = _NAIVE_BYTES * size**2 / 1e6
    on_gpu = device == "cuda"
    have = torch.cuda.get_device_properties(0).total_memory / 1e6 if on_gpu else free_mb()
    if need > 0.8 * have:
        return f"needs about {need / 1e3:.0f} GB, {have / 1e3:.0f} GB are free"
    return None


def rows(sizes: list[int], base: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One result after the other: memory in a process of its own, time by turns in another."""
    for size in sorted(set(sizes)):
        for case in CASES:
            yield from _rows_of({**base, "batch": size, "case": case})


def _rows_of(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    reasons = {i: why_not(i, task["batch"], task["device"]) for i in IMPLEMENTATIONS}
    memory = {}
    for impl in [i for i, reason in reasons.items() if reason is None]:
        try:
            memory[impl] = in_fresh_process({**task, "what": "retrieval_memory", "impl": impl})
        except ClipkitError as error:  # a row that fails costs no other row
            reasons[impl] = str(error)
    repeats = 5 if task["batch"] < 32768 else 3
    timing = {**task, "what": "retrieval_time", "impls": list(memory), "repeats": repeats}
    found = in_fresh_process(timing) if memory else {}
    for impl, reason in reasons.items():
        row = {"bench": "retrieval", "impl": impl, "case": task["case"]}
        row |= {"batch": task["batch"], "dim": task["dim"]}
        if reason is not None:
            yield {**row, "skipped": reason, "cpu_s": None, "wall_s": None, "extra_mb": None}
            continue
        summary = _summary(impl, found["times"])
        yield {**row, **summary, "recall@1": found["recall"][impl], **memory[impl]}


def _summary(impl: str, times: dict[str, Any]) -> dict[str, Any]:
    """Medians, and medians of the ratios within each turn."""
    found: dict[str, Any] = {"repeats": len(times[impl])}
    for k, key in enumerate(("cpu", "wall")):
        found[f"{key}_s"] = statistics.median(t[k] for t in times[impl])
        if "matmul" in times:
            ratios = [a[k] / b[k] for a, b in zip(times[impl], times["matmul"])]
            found[f"{key}_ratio_to_matmul"] = statistics.median(ratios)
    return found
