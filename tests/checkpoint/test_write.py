"""Written whole or not at all, by any number of ranks."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from clipkit.checkpoint import files, write
from clipkit.checkpoint.host_copy import HostCopy, Slice
from clipkit.checkpoint.read import CheckpointReader
from clipkit.checkpoint.verify import list_checkpoints, newest_valid, verify_checkpoint
from clipkit.dist.group import World
from clipkit.errors import CheckpointError
from clipkit.faults import POINTS
from tests.checkpoint.crashing import CrashingDisk, on
from tests.fixtures_checkpoint import (
    CONFIG,
    STATE,
    tensors,
    write_checkpoint,
    write_in_threads,
    write_run,
)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name != ".writer")


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_what_is_written_is_read_back(tmp_path: Path, world_size: int) -> None:
    folder = write_run(tmp_path, 5, world_size)
    manifest = verify_checkpoint(folder)
    ranks = [f"rank_{r:05d}.safetensors" for r in range(world_size)]
    assert names(folder) == sorted(
        [*ranks, "index.json", "manifest.json", "open_clip_config.json", "state.json"]
    )
    assert set(manifest["files"]) == set(names(folder)) - {"manifest.json"}
    reader = CheckpointReader(folder)
    for (kind, name), tensor in tensors().items():
        got = reader.full(kind, name)
        assert torch.equal(got, tensor) and got.dtype == tensor.dtype
    assert (reader.state, reader.config) == (STATE, CONFIG)
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step_00000005\n"


def test_a_rank_that_owns_nothing(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, 1, slices=[], state={}, model_config={}, world=World())
    verify_checkpoint(folder)
    assert CheckpointReader(folder).index == {}


def test_keep_the_newest(tmp_path: Path) -> None:
    for step in (2, 10, 4, 30):
        write_run(tmp_path, step, keep=2)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step_00000010", "step_00000030"]


def test_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    folder = write_run(tmp_path, 3, 2)
    assert write_run(tmp_path, 3, 1) == folder
    assert "rank_00001.safetensors" not in names(folder)
    verify_checkpoint(folder)
    assert names(tmp_path / "checkpoints") == ["latest", "step_00000003"]


class NoMoveOf(files.Disk):
    """A disk that does not rename folders of this kind."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def move(self, source: Path, target: Path) -> None:
        if self.mark in source.name:
            raise OSError(5, "Input/output error")
        super().move(source, target)


def test_one_that_cannot_be_replaced_keeps_its_name(tmp_path: Path) -> None:
    folder = write_run(tmp_path, 3, 2)
    with on(NoMoveOf(".tmp-")):
        (error,) = write_in_threads(tmp_path, 3, 1)
    assert isinstance(error, CheckpointError) and "Input/output error" in str(error)
    assert newest_valid(tmp_path) == (folder, []) and "rank_00001.safetensors" in names(folder)
    assert names(tmp_path / "checkpoints") == ["latest", "step_00000003"]


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_failed_write_leaves_earlier_checkpoints_and_no_litter(
    tmp_path: Path, world_size: int
) -> None:
    earlier = write_run(tmp_path, 1, world_size)
    with on(NoMoveOf(".step_00000002")):
        errors = write_in_threads(tmp_path, 2, world_size)
    for error in errors:  # every rank, so that none is left waiting
        assert isinstance(error, CheckpointError), error
        assert "earlier checkpoints are untouched" in str(error) and "step_00000002" in str(error)
        assert "rank 0: Input/output error" in str(error)
    assert names(tmp_path / "checkpoints") == ["latest", "step_00000001"]
    assert newest_valid(tmp_path) == (earlier, [])
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step_00000001\n"


class NoSecondRank(files.Disk):
    """A disk that rank 1 cannot write to."""

    def create(self, path: Path):  # type: ignore[no-untyped-def]
        if path.name == "rank_00001.safetensors":
            raise OSError(122, "Disk quota exceeded")
        return super().create(path)


def test_one_failing_rank_fails_all_and_is_named(tmp_path: Path) -> None:
    with on(NoSecondRank()):
        errors = write_in_threads(tmp_path, 2, 3)
    assert len(errors) == 3
    assert all("rank 1: Disk quota exceeded" in str(error) for error in errors)
    assert list_checkpoints(tmp_path) == []
    assert names(tmp_path / "checkpoints") == []


def test_everything_is_flushed_before_the_rename(tmp_path: Path) -> None:
    with on(disk := CrashingDisk()):
        write_run(tmp_path, 1)
    log = disk.log
    rename = next(i for i, line in enumerate(log) if line.startswith("move .step_"))
    written = {line.split()[1] for line in log if line.startswith("write")} - {".latest.tmp"}
    for name in written:
        last = max(i for i, line in enumerate(log) if line == f"write {name}")
        if not name.startswith(".latest"):
            assert last < log.index(f"sync {name}") < rename
    assert log[rename - 1].startswith("sync_path .step_")  # the names in it
    assert log[rename + 1] == "sync_path checkpoints"
    assert log.index("write manifest.json") > max(
        i for i, line in enumerate(log[:rename]) if line.startswith("write") and "man" not in line
    )


def test_no_pickle_in_any_file(tmp_path: Path) -> None:
    folder = write_run(tmp_path, 1)
    for path in folder.iterdir():
        if path.suffix == ".json":
            json.loads(path.read_text())
        else:
            assert path.suffix == ".safetensors"


def test_pruning_never_takes_the_one_just_written(tmp_path: Path) -> None:
    for step in (2, 3, 4):
        write_run(tmp_path, step)
    for step in (3, 4):  # damaged, so a run resumed from 2 writes 3 again
        with open(tmp_path / "checkpoints" / f"step_{step:08d}" / "state.json", "a") as file:
            file.write(" ")
    final = write_run(tmp_path, 3, keep=1)
    verify_checkpoint(final)
    assert newest_valid(tmp_path)[0] == final


def test_files_are_as_readable_as_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    folder = write_run(tmp_path, 3)
    modes = {path.stat().st_mode & 0o777 for path in [tmp_path / "new", *folder.iterdir()]}
    assert len(modes) == 1


def test_sweep_takes_the_dead_and_leaves_the_living(tmp_path: Path) -> None:
    there = [
        ".step_00000001.tmp-aa-0", ".step_00000002.tmp-bb-7", ".step_00000001.gone-cc",
        ".step_00000003.tmp-mine-1", ".hidden", "step_00000004", "step_00000004.replaced-dd",
        "step_00000005.replaced-ee",
    ]  # fmt: skip
    for name in there:
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "file").touch()
    (tmp_path / ".latest.tmp-1-2").touch()
    write.sweep(tmp_path, ".step_00000003.tmp-mine-1")
    assert names(tmp_path) == [
        ".hidden", ".step_00000003.tmp-mine-1", "step_00000004", "step_00000005",
    ]  # fmt: skip


def test_where_files_cannot_be_locked_only_ones_own_are_swept(tmp_path: Path) -> None:
    for name in (".step_00000001.tmp-aa-0", ".step_00000001.tmp-bb-0", ".step_00000001.tmp-bb-1"):
        (tmp_path / name).mkdir()
    write.sweep(tmp_path, ".step_00000001.tmp-bb-1", "bb")
    assert names(tmp_path) == [".step_00000001.tmp-aa-0", ".step_00000001.tmp-bb-1"]


def test_discard_hides_first(tmp_path: Path) -> None:
    folder = write_run(tmp_path, 1)
    with on(disk := CrashingDisk()):
        write.discard(folder)
    assert disk.log[0] == "move step_00000001" and names(tmp_path / "checkpoints") == ["latest"]


@pytest.mark.parametrize("point", POINTS)
def test_each_point_of_a_save_can_be_made_its_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    killed: list[tuple[int, int, list[str]]] = []
    root = tmp_path / "checkpoints"

    def kill(pid: int, number: int) -> None:
        found = sorted(str(p.relative_to(root)) for p in root.rglob("*"))
        killed.append((pid, number, found))

    write_run(tmp_path, 1)
    monkeypatch.setenv("CLIPKIT_FAULT", f"save@0:2:{point}")
    monkeypatch.setattr(write.os, "kill", kill)
    write_run(tmp_path, 2, keep=1)
    ((pid, number, found),) = killed
    assert (pid, number) == (os.getpid(), signal.SIGKILL)
    new = [p for p in found if "step_00000002" in p]
    assert ("step_00000002" in found) == (point in ("latest", "prune"))
    assert any(p.endswith("manifest.json") for p in new) == (point not in ("tensor", "manifest"))
    assert any(p.endswith("state.json") for p in new) == (point != "tensor")
    assert any(p.startswith(".step_00000001.gone-") for p in found) == (point == "prune")


def test_a_full_disk_on_purpose_for_as_many_tries_as_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = HostCopy()
    copy.take([Slice("weight", "w", (4,), 0, torch.ones(4))])
    monkeypatch.setenv("CLIPKIT_FAULT", "disk_full@0:2:2,disk_full@1:2")
    for rank, attempt, fails in ((0, 0, True), (0, 1, True), (0, 2, False), (1, 9, True)):
        try:
            write.write_part(tmp_path, rank, copy, 2, attempt)
            assert not fails
        except OSError as error:
            assert fails and error.errno == 28
    write.write_part(tmp_path, 1, copy, 3)
