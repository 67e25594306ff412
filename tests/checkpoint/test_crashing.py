"""A save that ends at any operation or byte leaves a valid checkpoint; the next life goes on."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch

from clipkit.checkpoint.host_copy import Slice
from clipkit.checkpoint.read import CheckpointReader
from clipkit.checkpoint.saver import Saver
from clipkit.checkpoint.verify import list_checkpoints, newest_valid, step_of
from clipkit.dist.group import World
from clipkit.errors import CheckpointError
from tests.checkpoint.crashing import Crash, CrashingDisk, on


def value_of(step: int, history: int) -> torch.Tensor:
    """What a checkpoint of this step holds."""
    return torch.arange(40.0) + 100 * step + history


def life(run: Path, steps: list[int], history: int = 0, background: bool = True) -> Saver:
    """One process that saves after each of these steps and ends."""
    saver = Saver(run, World(), keep=2, keep_every=10, background=background)
    for step in steps:
        one = Slice("weight", "w", (40,), 0, value_of(step, history))
        state = {"step": step, "history": history}
        saver.save(step, slices=[one], state=state, model_config={})
    saver.wait(())
    return saver


def check(run: Path) -> int:
    """The newest valid checkpoint holds what was saved at its step; returns the step."""
    found, _ = newest_valid(run)
    assert found is not None
    reader = CheckpointReader(found)
    expected = value_of(reader.state["step"], reader.state["history"])
    assert torch.equal(reader.full("weight", "w"), expected)
    assert reader.state["step"] == step_of(found)
    return step_of(found)


def names(run: Path) -> set[str]:
    return {p.name for p in (run / "checkpoints").iterdir()}


def crash_everywhere(tmp_path: Path, steps: list[int], history: int, **options: object) -> int:
    """Lives that end at operation 1, 2, ... of these saves; after each the next one goes on."""
    operation = 0
    while True:
        operation += 1
        run = tmp_path / str(operation)
        with on(CrashingDisk()):
            life(run, [10, 11])
        disk = CrashingDisk(crash_at=operation, **options)  # type: ignore[arg-type]
        with on(disk):
            try:
                life(run, steps, history, background=operation % 2 == 0)
            except Crash:
                pass
            else:
                return operation
        newest = check(run)
        assert newest >= 11, disk.log[-1]
        with on(CrashingDisk()):
            life(run, [newest + 1, newest + 2], history + 1)
        kept = {f"step_{s:08d}" for s in {10, newest + 1, newest + 2}}
        assert names(run) == {*kept, "latest", ".writer"}, disk.log[-1]
        assert check(run) == newest + 2


@pytest.mark.parametrize("power_loss", [False, True])
def test_a_crash_at_every_operation(tmp_path: Path, power_loss: bool) -> None:
    assert crash_everywhere(tmp_path, [12, 13], 0, power_loss=power_loss) > 50


@pytest.mark.parametrize("power_loss", [False, True])
def test_a_crash_at_every_operation_of_a_second_save_of_a_step(
    tmp_path: Path, power_loss: bool
) -> None:
    assert crash_everywhere(tmp_path, [11], 5, power_loss=power_loss) > 25


def test_the_only_checkpoint_is_replaced_without_a_moment_without_one(tmp_path: Path) -> None:
    operation, crashed = 0, True
    while crashed:
        operation += 1
        run = tmp_path / str(operation)
        with on(CrashingDisk()):
            life(run, [7])
        disk = CrashingDisk(crash_at=operation)
        with on(disk), contextlib.suppress(Crash):
            life(run, [7], history=1)
        crashed = disk.crashed
        assert check(run) == 7
        with on(CrashingDisk()):
            life(run, [8], history=2)
        assert names(run) == {"step_00000007", "step_00000008", "latest", ".writer"}


def bytes_of_a_save(folder: Path) -> int:
    """Written for one checkpoint, `latest` left out."""
    with on(disk := CrashingDisk()):
        life(folder, [10])
    return disk.written - len("step_00000010\n")


def test_a_crash_at_any_byte(tmp_path: Path) -> None:
    for byte in range(1, bytes_of_a_save(tmp_path), 29):
        with on(CrashingDisk(crash_at_byte=byte)), pytest.raises(Crash):
            life(tmp_path, [12])
        assert check(tmp_path) == 10


def test_a_flipped_bit_is_found_before_pruning(tmp_path: Path) -> None:
    for byte in range(1, bytes_of_a_save(tmp_path / "0"), 53):
        run = tmp_path / str(byte)
        with on(CrashingDisk()):
            life(run, [1, 2])
        with on(CrashingDisk(flip_at_byte=byte)):
            life(run, [3])
        assert [step_of(p) for p in list_checkpoints(run)] == [1, 2, 3]
        assert check(run) == 2


def test_a_flipped_bit_in_a_second_save_of_the_only_checkpoint(tmp_path: Path) -> None:
    for byte in range(1, bytes_of_a_save(tmp_path / "0"), 53):
        run = tmp_path / str(byte)
        with on(CrashingDisk()):
            life(run, [7])
        with on(CrashingDisk(flip_at_byte=byte)), contextlib.suppress(CheckpointError):
            life(run, [7], history=1)
        assert check(run) == 7


@pytest.mark.parametrize("full_for", [1, 3, 10_000])
def test_a_full_disk_at_every_operation(tmp_path: Path, full_for: int) -> None:
    for operation in range(1, 30, 1 if full_for == 1 else 5):
        run = tmp_path / str(operation)
        with on(CrashingDisk()):
            life(run, [10, 11])
        told: list[tuple[str, str, dict[str, Any]]] = []
        disk = CrashingDisk(full_from=operation, full_for=full_for)
        with on(disk):
            saver = Saver(run, World(), tell=lambda *words, told=told: told.append(words))
            one = Slice("weight", "w", (40,), 0, value_of(12, 0))
            saver.save(12, slices=[one], state={"step": 12, "history": 0}, model_config={})
            saver._settle()
        assert check(run) == (11 if saver.failures else 12)
        assert len(told) >= 1 and told[0][0] == ("save_failed" if saver.failures else "saved")
        if saver.failures:
            assert "No space left on device" in told[0][1] and "step_00000012" in told[0][1]
            assert names(run) == {"step_00000010", "step_00000011", "latest", ".writer"}
            with on(CrashingDisk()):
                saver.wait([0.0])
        assert check(run) == 12
