"""Row 18: wandb, the network or the disk of the logs fails: training does not notice."""

from __future__ import annotations

import errno
import os
import sys
import threading
import types
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from clipkit.dist.group import World
from tests.engine.inprocess import fit_in_pool
from tests.faults.conftest import Reference
from tests.faults.harness import assert_same_weights, events, history, status


def fit_with_broken_wandb(world: World, config: str, overrides: list[str], how: str) -> str:
    """wandb throws from the start, in every row, or hangs; minutes of waiting are cut short."""
    never = threading.Event()

    def fail(*_: Any, **__: Any) -> Any:
        raise ConnectionError("the network is down")

    def hang(*_: Any, **__: Any) -> None:
        never.wait()

    work = {"throws": fail, "hangs": hang, "is gone": fail}[how]
    run = types.SimpleNamespace(log=work, finish=work)
    begin = fail if how == "is gone" else lambda **_: run
    fake = types.SimpleNamespace(init=begin, Settings=lambda **_: None)
    with (
        mock.patch.dict(sys.modules, {"wandb": fake}),
        mock.patch("clipkit.engine.wandb_sink._WAITING", 10),
        mock.patch("clipkit.engine.wandb_sink._FINISH_S", 0.5),
    ):
        return fit_in_pool(world, config, [*overrides, "log.wandb=online"])


def fit_on_a_failing_disk(world: World, config: str, overrides: list[str]) -> str:
    """No line of steps 10 to 19 can be written; half of the first one was."""
    write = os.write

    def failing(descriptor: int, data: bytes) -> int:
        if any(data.startswith(b'{"step": %d,' % step) for step in range(10, 20)):
            write(descriptor, data[:7])
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return write(descriptor, data)

    with mock.patch("clipkit.engine.json_lines.os.write", failing):
        return fit_in_pool(world, config, overrides)


@pytest.mark.parametrize(
    "how", ["throws", *(pytest.param(h, marks=pytest.mark.slow) for h in ("hangs", "is gone"))]
)
def test_wandb(tmp_path: Path, reference: Reference, ranks, how: str) -> None:  # type: ignore[no-untyped-def]
    overrides, run = [f"run.dir={tmp_path}", "data.workers=0"], tmp_path / "r"
    outcomes = ranks(2).run(fit_with_broken_wandb, str(reference.config), overrides, how)
    assert outcomes == ["done"] * 2
    assert history(run) == history(reference.run)
    assert_same_weights(run, reference.run)
    told = events(run, "wandb_failed")
    assert 1 <= len(told) <= 2 and all(e["alarm"] and "wandb" in e["text"] for e in told)
    assert status(run)["alarms"]["count"] >= 1


def test_metrics_on_a_failing_disk(tmp_path: Path, reference: Reference, ranks) -> None:  # type: ignore[no-untyped-def]
    overrides, run = [f"run.dir={tmp_path}", "data.workers=0"], tmp_path / "r"
    outcomes = ranks(2).run(fit_on_a_failing_disk, str(reference.config), overrides)
    assert outcomes == ["done"] * 2
    whole = history(reference.run)
    assert history(run) == [line for line in whole if not 10 <= line[0] < 20]
    assert_same_weights(run, reference.run)
    (told,) = events(run, "log_failed")
    assert told["step"] == 10 and os.strerror(errno.EIO) in told["text"]
