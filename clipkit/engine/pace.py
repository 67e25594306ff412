"""Where the time of a step goes, and the memory: for metrics and for the report of slow ranks."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch

from clipkit.contracts import Batch

_RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes


class OwnTime:
    """Seconds this rank computes before it meets the others; on a GPU by the GPU's own clock."""

    def __init__(self, device: torch.device) -> None:
        self._gpu = device.type == "cuda"
        self._begin: Any = None
        self._end: Any = None

    def start(self) -> None:
        """At the beginning of a step."""
        self._begin = self._now()

    def stop(self) -> None:
        """Before the first exchange; on a GPU the work up to here may still be running."""
        self._end = self._now()

    def seconds(self) -> float:
        """Between the two; to be asked once something has waited for the GPU."""
        if self._gpu:
            return self._begin.elapsed_time(self._end) / 1000
        return self._end - self._begin

    def _now(self) -> Any:
        if not self._gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class Pace:
    """Clock of the loop.

    Args:
        device: Whose memory counts.

    Attributes:
        data_s: Seconds the last step waited for its batch.
        begun: When the last step began, by `time.perf_counter`.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._start = device, time.perf_counter()
        self.begun, self.data_s = self._start, 0.0

    def fetch(self, batches: Iterator[Batch]) -> Batch:
        """The next batch, and how long it took; a step begins here."""
        self.begun = time.perf_counter()
        batch = next(batches)
        self.data_s = time.perf_counter() - self.begun
        return batch

    def elapsed(self) -> float:
        """Seconds since this step began."""
        return time.perf_counter() - self.begun

    def rate(self, samples: int) -> float:
        """Samples per second since the start of the process, evaluations included."""
        return samples / max(1e-9, time.perf_counter() - self._start)

    def metrics(self) -> dict[str, float]:
        """Of the step that ends now: seconds, share of them waiting for data, peak memory in GB."""
        step_s = self.elapsed()
        return {
            "train/step_s": step_s,
            "train/data_wait": self.data_s / max(1e-9, step_s),
            "train/peak_memory_gb": peak_memory(self._device) / 1e9,
        }


def peak_memory(device: torch.device) -> int:
    """Bytes: the GPU allocator's peak, or the process's own where there is no GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT
