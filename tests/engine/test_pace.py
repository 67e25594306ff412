"""Where the time of a step goes, by a clock that the test turns."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from clipkit.engine import pace
from clipkit.engine.pace import OwnTime, Pace, peak_memory


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    now = SimpleNamespace(s=100.0)
    monkeypatch.setattr(pace.time, "perf_counter", lambda: now.s)
    return now


def test_the_wait_for_data_is_a_share_of_the_step(clock: SimpleNamespace) -> None:
    def slow() -> Iterator[Any]:
        while True:
            clock.s += 3.0
            yield "batch"

    measured, batches = Pace(torch.device("cpu")), slow()
    for _ in range(2):
        assert measured.fetch(batches) == "batch"
        clock.s += 1.0
        assert measured.elapsed() == 4.0
        found = measured.metrics()
        assert (found["train/step_s"], found["train/data_wait"]) == (4.0, 0.75)
    assert measured.rate(16) == 2.0


def test_own_time_lies_between_its_marks(clock: SimpleNamespace) -> None:
    own = OwnTime(torch.device("cpu"))
    own.start()
    clock.s += 2.0
    own.stop()
    clock.s += 5.0
    assert own.seconds() == 2.0


def test_peak_memory_is_the_processs_own_or_the_allocators(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 10**7 < peak_memory(torch.device("cpu")) < 10**12
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 7)
    assert peak_memory(torch.device("cuda")) == 7
