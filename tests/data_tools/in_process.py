"""An engine without workers, so that a test of a tool starts no processes."""

from collections.abc import Iterator, Sequence

import pytest

import data_tools.map_shards as mapping
from data_tools.engines.task import Outcome, Task, run_task


def serial(tasks: Sequence[Task], workers: int | None) -> Iterator[tuple[int, Outcome]]:
    for number, task in enumerate(tasks):
        yield number, run_task(task)


def use_serial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every engine is this one."""
    monkeypatch.setattr(mapping, "load_engine", lambda name: serial)
