"""CLIPKIT_FAULT is read as it was meant, or refused before anything starts."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from unittest import mock

import pytest

from clipkit import faults
from clipkit.config.load import load_config
from clipkit.engine.preflight import preflight
from clipkit.errors import ConfigError
from tests.e2e.runs import write_run


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch):
    return lambda text: monkeypatch.setenv(faults.VARIABLE, text)


def test_unset_it_asks_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(faults.VARIABLE, raising=False)
    assert faults.asked("nan_loss", 0, 3) is None and faults.warning() == []
    faults.strike(0, 3)


def test_a_fault_strikes_its_rank_in_its_step_only(fault) -> None:  # type: ignore[no-untyped-def]
    fault("term@1:3, save@*:5:rename,spike@0:2:4.5")
    with mock.patch.object(os, "kill") as kill:
        for rank, step in [(0, 3), (1, 2), (1, 4)]:
            faults.strike(rank, step)
        assert not kill.called
        faults.strike(1, 3)
    kill.assert_called_once_with(os.getpid(), signal.SIGTERM)
    assert faults.asked("save", 7, 5) == "rename" and faults.asked("save", 7, 4) is None
    assert faults.loss_factor(0, 2) == 4.5 and faults.loss_factor(1, 2) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kil@0:1", "is no fault; .*kinds: kill"),
        ("kill@0", "is no fault"),
        ("kill@-1:3", "is no fault"),
        ("kill@0:3:now", "kill takes no argument"),
        ("sleep@0:3:long", "sleep takes a number"),
        ("spike@0:3:nan", "spike takes a number"),
        ("save@0:3", "save takes one of tensor, manifest"),
        ("save@0:3:middle", "save takes one of"),
    ],
)
def test_a_mistake_is_told_before_the_start(tmp_path: Path, text: str, words: str, fault) -> None:  # type: ignore[no-untyped-def]
    config = load_config(write_run(tmp_path))
    fault(text)
    with pytest.raises(ConfigError, match=words):
        preflight(config)


def test_a_run_that_is_to_be_broken_says_so(tmp_path: Path, fault) -> None:  # type: ignore[no-untyped-def]
    fault("kill@0:10")
    assert any("kill@0:10 is set" in text for text in preflight(load_config(write_run(tmp_path))))
