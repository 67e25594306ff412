"""A try on one rank: what it announces, in which order it acts, and what it leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from clipkit.checkpoint.host_copy import HostCopy, Slice
from clipkit.checkpoint.retention import Retention
from clipkit.checkpoint.verify import list_checkpoints, step_of
from clipkit.checkpoint.writer import Job, Writer
from clipkit.dist.group import World
from tests.checkpoint.crashing import CrashingDisk, on
from tests.fixtures_checkpoint import write_run

TEXTS = {"state.json": "{}", "open_clip_config.json": "{}"}


@pytest.fixture
def copy() -> HostCopy:
    made = HostCopy()
    made.take([Slice("weight", "w", (4,), 0, torch.ones(4))])
    return made


def test_all_know_before_pruning_begins(tmp_path: Path, copy: HostCopy) -> None:
    order: list[str] = []
    writer = Writer(tmp_path, World(), Retention(1), {}, lambda kind, *_: order.append(kind))
    announce = writer.meeting.announce

    def noted(number: int, outcome: str) -> None:
        order.append(f"announced '{outcome}'")
        announce(number, outcome)

    writer.meeting.announce = noted  # type: ignore[method-assign]
    for number, step in enumerate((1, 2)):
        writer.write(Job(step, number, TEXTS, 0.0), copy)
    assert order == ["saved", "announced ''", "saved", "announced ''", "pruned"]
    assert [step_of(p) for p in list_checkpoints(tmp_path)] == [2]
    assert writer.finished == tmp_path / "checkpoints" / "step_00000002"


def test_a_failed_try_is_announced_and_prunes_nothing(tmp_path: Path, copy: HostCopy) -> None:
    told: list[tuple[str, str, dict[str, Any]]] = []
    for step in (1, 2):
        write_run(tmp_path, step)
    writer = Writer(tmp_path, World(), Retention(1), {}, lambda *words: told.append(words))
    with on(CrashingDisk(full_from=1, full_for=99)):
        writer.write(Job(3, 0, TEXTS, 0.0), copy)
    assert writer.meeting.outcome(0) == "rank 0: No space left on device"
    assert [kind for kind, _, _ in told] == ["save_failed"] and told[0][2]["step"] == 3
    assert [step_of(p) for p in list_checkpoints(tmp_path)] == [1, 2]
    assert writer.finished is None
    assert not list((tmp_path / "checkpoints").glob(".step*"))


def test_a_try_has_a_folder_of_its_own(tmp_path: Path, copy: HostCopy) -> None:
    with on(disk := CrashingDisk()):
        writer = Writer(tmp_path, World(), Retention(1), {}, lambda *words: None)
        for number in range(2):
            writer.write(Job(1, number, TEXTS, 0.0, attempt=number), copy)
    moved = [line for line in disk.log if line.startswith("move .step_00000001.tmp-")]
    assert len(set(moved)) == 2 and all(writer.meeting.id in line for line in moved)
