"""The loop goes on while a thread writes; a disk that fails costs a checkpoint, not the run."""

from __future__ import annotations

import os
import resource
import threading
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch

from clipkit.checkpoint import saver
from clipkit.checkpoint.files import Disk
from clipkit.checkpoint.host_copy import Slice
from clipkit.checkpoint.read import CheckpointReader
from clipkit.checkpoint.saver import Saver
from clipkit.checkpoint.verify import list_checkpoints, newest_valid, step_of, verify_checkpoint
from clipkit.dist.group import World
from clipkit.errors import CheckpointError
from tests.checkpoint.crashing import CrashingDisk, on


class SlowDisk(Disk):
    """Writes wait for `free`; `writing` says that one does."""

    def __init__(self) -> None:
        self.free, self.writing = threading.Event(), threading.Event()

    def write(self, file: BinaryIO, block: bytes | memoryview) -> None:
        self.writing.set()
        assert self.free.wait(20)
        super().write(file, block)


def save(made: Saver, step: int, data: torch.Tensor | None = None, **state: Any) -> None:
    one = Slice("weight", "w", (4,), 0, torch.full((4,), float(step)) if data is None else data)
    made.save(step, slices=[one], state={"step": step, **state}, model_config={})


def steps(run: Path) -> list[int]:
    return [step_of(p) for p in list_checkpoints(run)]


def test_the_loop_goes_on_and_may_change_everything(tmp_path: Path) -> None:
    live, state = torch.ones(4), {"results": {}}
    with on(disk := SlowDisk()):
        made = Saver(tmp_path, World())
        save(made, 1, live, nested=state)
        assert disk.writing.wait(20)
        live.zero_()
        state["results"] = {"changed": 1}
        assert steps(tmp_path) == [] and made.last is None
        disk.free.set()
        made.wait()
    reader = CheckpointReader(made.last or "")
    assert reader.full("weight", "w").tolist() == [1.0] * 4
    assert reader.state == {"step": 1, "nested": {"results": {}}}
    assert made.seconds["total"] >= made.seconds["blocked"] > 0


def test_a_save_waits_for_the_one_before(tmp_path: Path) -> None:
    with on(disk := SlowDisk()):
        made = Saver(tmp_path, World())
        save(made, 1)
        second = threading.Thread(target=save, args=(made, 2))
        second.start()
        second.join(0.3)
        assert second.is_alive() and not (tmp_path / "checkpoints" / "step_00000001").exists()
        disk.free.set()
        second.join(20)
        made.wait()
    assert steps(tmp_path) == [1, 2] and made.last == tmp_path / "checkpoints" / "step_00000002"


def test_without_a_thread_it_is_on_disk_at_once(tmp_path: Path) -> None:
    before = threading.active_count()
    made = Saver(tmp_path, World(), background=False)
    save(made, 1)
    assert steps(tmp_path) == [1] and made.last is not None
    assert threading.active_count() == before


def test_a_failed_write_is_told_once_and_the_next_one_works(tmp_path: Path) -> None:
    told: list[tuple[str, str, dict[str, Any]]] = []
    made = Saver(tmp_path, World(), tell=lambda *words: told.append(words))
    save(made, 1)
    made.wait()
    with on(CrashingDisk(full_from=1, full_for=10**6)):
        save(made, 2)
        made._settle()
    save(made, 3)
    made.wait()
    assert [kind for kind, _, _ in told] == ["saved", "save_failed", "saved"]
    assert "No space left on device" in told[1][1] and told[1][2]["step"] == 2
    assert made.failures == 1 and steps(tmp_path) == [1, 3]


def test_the_last_one_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(saver.time, "sleep", pauses.append)
    monkeypatch.setenv("CLIPKIT_FAULT", "disk_full@0:2:2")
    made = Saver(tmp_path, World())
    save(made, 1)
    save(made, 2)
    made.wait()
    assert pauses == [5.0, 30.0] and steps(tmp_path) == [1, 2] and made.failures == 2
    assert CheckpointReader(made.last or "").full("weight", "w").tolist() == [2.0] * 4


def test_in_the_end_it_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saver, "RETRY_AFTER_S", (0.0, 0.0))
    monkeypatch.setenv("CLIPKIT_FAULT", "disk_full@0:2")
    made = Saver(tmp_path, World())
    save(made, 1)
    save(made, 2)
    with pytest.raises(CheckpointError) as caught:
        made.wait()
    assert "step_00000002 was not written (rank 0: No space left" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert steps(tmp_path) == [1] and made.failures == 3
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {
        "latest", ".writer", "step_00000001",
    }  # fmt: skip


def test_a_bug_in_the_thread_is_raised_in_the_loop(tmp_path: Path) -> None:
    def broken(*words: Any) -> None:
        raise KeyError("bug")

    made = Saver(tmp_path, World(), tell=broken)
    save(made, 1)
    with pytest.raises(KeyError):
        made.wait()


def test_two_writers_in_one_folder(tmp_path: Path) -> None:
    told: list[str] = []
    with on(disk := SlowDisk()):
        first = Saver(tmp_path, World())
        second = Saver(tmp_path, World(), tell=lambda kind, text, values: told.append(text))
        save(first, 1)
        assert disk.writing.wait(20)
        save(second, 2)
        second._settle()
        assert second.failures == 1 and "another process is writing checkpoints" in told[0]
        disk.free.set()
        first.wait()
        save(second, 2)
        second.wait()
    assert steps(tmp_path) == [1, 2]


def test_what_dead_runs_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / ".step_00000009.tmp-dead-3").mkdir(parents=True)
    made = Saver(tmp_path, World())
    save(made, 1)
    made.wait()
    assert not list((tmp_path / "checkpoints").glob(".step*"))


def test_pruned_by_rule_and_told(tmp_path: Path) -> None:
    told: list[tuple[str, str]] = []
    made = Saver(
        tmp_path,
        World(),
        keep=1,
        keep_every=4,
        best="z/acc",
        tell=lambda k, t, v: told.append((k, t)),
    )
    for step in range(1, 8):
        evaluated = step - 1  # an evaluation follows the save of its step
        results = {"z": {"acc": 1.0 if evaluated == 2 else 0.5}}
        save(made, step, results=results if evaluated else {}, results_step=evaluated)
    made.wait()
    assert steps(tmp_path) == [2, 4, 7]
    assert [text[-8:] for kind, text in told if kind == "pruned"] == [
        f"{n:08d}" for n in (1, 3, 5, 6)
    ]
    again = Saver(tmp_path, World(), keep=1, best="z/acc")  # a new life knows the scores
    save(again, 8)
    again.wait()
    assert steps(tmp_path) == [2, 8]


def test_a_metric_that_nobody_measures_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    made = Saver(tmp_path, World(), best="z/akk", tell=lambda k, t, v: told.append(t))
    save(made, 1, results={"z": {"acc": 0.1}}, results_step=1)
    made.wait()
    assert "checkpoint.best: no result is called z/akk; there are z/acc" in told[0]


def test_an_old_one_that_cannot_be_removed_is_told(tmp_path: Path) -> None:
    class Sticky(Disk):
        def move(self, source: Path, target: Path) -> None:
            if ".gone-" in target.name:
                raise OSError(1, "Operation not permitted")
            super().move(source, target)

    told: list[str] = []
    with on(Sticky()):
        made = Saver(tmp_path, World(), keep=1, tell=lambda k, t, v: told.append(k))
        for step in (1, 2):
            save(made, step)
        made.wait()
    assert told == ["saved", "saved", "prune_failed"] and steps(tmp_path) == [1, 2]


def test_a_file_size_limit_is_a_full_disk(tmp_path: Path) -> None:
    """The operating system's own refusal, in a process of its own."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            made = Saver(tmp_path, World(), background=False)
            save(made, 1)
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
            save(made, 2)
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            save(made, 3)
            status = 0 if made.failures == 1 and steps(tmp_path) == [1, 3] else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert newest_valid(tmp_path)[1] == []


def save_on_a_rank(world: World, run: str) -> dict[str, Any]:
    """Three saves; the second fails on the last rank."""
    made = Saver(run, world, keep=5)
    for step in (1, 2, 3):
        data = torch.full((2,), float(10 * step + world.rank))
        one = Slice("weight", "w", (2 * world.world_size,), 2 * world.rank, data)
        fault = f"disk_full@{world.world_size - 1}:2"
        os.environ["CLIPKIT_FAULT"] = fault
        try:
            made.save(step, slices=[one], state={"step": step}, model_config={})
            made._settle()
        finally:
            del os.environ["CLIPKIT_FAULT"]
    made.wait()
    return {"last": str(made.last), "failures": made.failures}


def test_on_two_processes(tmp_path: Path, ranks) -> None:  # type: ignore[no-untyped-def]
    answers = ranks(2).run(save_on_a_rank, str(tmp_path))
    last = tmp_path / "checkpoints" / "step_00000003"
    assert answers == [{"last": str(last), "failures": 1}] * 2
    assert steps(tmp_path) == [1, 3]
    verify_checkpoint(last)
    assert CheckpointReader(last).full("weight", "w").tolist() == [30.0, 30.0, 31.0, 31.0]
