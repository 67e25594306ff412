"""wandb that throws or hangs costs rows and one complaint, never a step."""

from __future__ import annotations

import sys
import threading
import types
from pathlib import Path
from typing import Any

import pytest

from clipkit.engine import wandb_sink
from clipkit.engine.wandb_sink import WandbSink


class FakeRun:
    """What wandb.init gives; `log` and `finish` may be replaced."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.finished = False

    def log(self, values: dict[str, Any], step: int) -> None:
        """Keep the step."""
        self.rows.append(step)

    def finish(self) -> None:
        """Note it."""
        self.finished = True


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRun:
    run = FakeRun()
    module = types.SimpleNamespace(init=lambda **_: run, Settings=lambda **_: None)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return run


def sink(folder: Path, complaints: list[str]) -> WandbSink:
    """One with its complaints in a list."""
    return WandbSink(
        folder, "offline", project="p", name="n", config={}, complain=complaints.append
    )


def test_rows_arrive_in_order_and_closing_waits_for_them(tmp_path: Path, fake: FakeRun) -> None:
    complaints: list[str] = []
    one = sink(tmp_path, complaints)
    for step in range(100):
        one.log(step, {"a": step})
    one.close()
    assert fake.rows == list(range(100)) and fake.finished and not complaints


def test_what_it_throws_is_told_once_until_it_works_again(tmp_path: Path, fake: FakeRun) -> None:
    complaints: list[str] = []
    kept = fake.log

    def log(values: dict[str, Any], step: int) -> None:
        if step in (3, 4, 5, 8):
            raise ConnectionError("no network")
        kept(values, step)

    fake.log = log  # type: ignore[method-assign]
    one = sink(tmp_path, complaints)
    for step in range(10):
        one.log(step, {})
    one.close()
    assert fake.rows == [0, 1, 2, 6, 7, 9] and one.lost == 4
    assert complaints == ["wandb fails: ConnectionError: no network"] * 2


def test_one_that_hangs_holds_up_nobody(
    tmp_path: Path, fake: FakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    complaints: list[str] = []
    monkeypatch.setattr(wandb_sink, "_WAITING", 5)
    monkeypatch.setattr(wandb_sink, "_FINISH_S", 0.1)
    release = threading.Event()
    fake.log = lambda values, step: release.wait()  # type: ignore[assignment,method-assign,return-value]
    one = sink(tmp_path, complaints)
    for step in range(100):
        one.log(step, {})
    one.close()
    assert complaints[0] == "wandb hangs: 5 rows are waiting" and len(complaints) <= 2
    release.set()


def test_no_wandb_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    complaints: list[str] = []
    one = sink(tmp_path, complaints)
    one.log(1, {})
    one.close()
    assert len(complaints) == 1 and complaints[0].startswith("wandb is off: ")
