"""Written whole or not at all, by any number of ranks."""

import json

import pytest
import torch

from clipkit.checkpoint import write
from clipkit.checkpoint.read import CheckpointReader
from clipkit.checkpoint.verify import list_checkpoints, newest_valid, verify_checkpoint
from clipkit.errors import CheckpointError
from tests.fixtures_checkpoint import CONFIG, STATE, tensors, write_in_threads, write_run


def names(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_what_is_written_is_read_back(tmp_path, world_size):
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


def test_files_do_not_alias_the_live_tensors(tmp_path):
    only = write.Slice("weight", "w", (4,), 0, torch.ones(8)[::2])
    write.write_checkpoint(
        tmp_path, 1, slices=[only], state={}, model_config={}, world=write.World()
    )
    assert (
        CheckpointReader(tmp_path / "checkpoints" / "step_00000001").full("weight", "w").tolist()
        == [1.0] * 4
    )


def test_a_rank_that_owns_nothing(tmp_path):
    write.write_checkpoint(tmp_path, 1, slices=[], state={}, model_config={}, world=write.World())
    folder = tmp_path / "checkpoints" / "step_00000001"
    verify_checkpoint(folder)
    assert CheckpointReader(folder).index == {}


def test_keep_the_newest(tmp_path):
    for step in (2, 10, 4, 30):
        write_run(tmp_path, step, keep=2)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step_00000010", "step_00000030"]


def test_the_same_step_again_replaces_it(tmp_path):
    folder = write_run(tmp_path, 3, 2)
    assert write_run(tmp_path, 3, 1) == folder
    assert "rank_00001.safetensors" not in names(folder)
    verify_checkpoint(folder)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("broken", ["save_file", "sha256", "_merge", "os.rename"])
def test_a_failed_write_leaves_earlier_checkpoints_and_no_litter(
    tmp_path, monkeypatch, world_size, broken
):
    earlier = write_run(tmp_path, 1, world_size)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"clipkit.checkpoint.write.{broken}", full)
        errors = write_in_threads(tmp_path, 2, world_size)
    for error in errors:  # every rank, so that none is left waiting
        assert isinstance(error, CheckpointError), error
        assert "earlier checkpoints are untouched" in str(error) and "step_00000002" in str(error)
    assert any("No space left on device" in str(e) for e in errors)
    assert names(tmp_path / "checkpoints") == ["latest", "step_00000001"]
    assert newest_valid(tmp_path) == (earlier, [])
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step_00000001\n"


def test_one_failing_rank_fails_all(tmp_path, monkeypatch):
    save = write.save_file

    def second_rank_fails(found, path, *args):
        if path.name == "rank_00001.safetensors":
            raise OSError(5, "Input/output error")
        save(found, path, *args)

    monkeypatch.setattr(write, "save_file", second_rank_fails)
    errors = write_in_threads(tmp_path, 2, 2)
    assert "on another rank" in str(errors[0]) and "Input/output error" in str(errors[1])
    assert list_checkpoints(tmp_path) == []


def test_the_tensor_librarys_own_error_counts_as_a_failed_write(tmp_path, monkeypatch):
    import safetensors

    def fail(*args):
        raise safetensors.SafetensorError("I/O error: No space left")

    monkeypatch.setattr(write, "save_file", fail)
    (error,) = write_in_threads(tmp_path, 2, 1)
    assert isinstance(error, CheckpointError) and "No space left" in str(error)


class Crash(BaseException):
    """Power is gone: nothing after this line runs."""


@pytest.mark.parametrize("where", ["save_file", "_merge", "os.rename"])
def test_a_crash_leaves_no_step_folder_and_the_next_write_sweeps(tmp_path, monkeypatch, where):
    write_run(tmp_path, 1)

    def crash(*args, **kwargs):
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(f"clipkit.checkpoint.write.{where}", crash)
        (error,) = write_in_threads(tmp_path, 2, 1)
    assert isinstance(error, Crash)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step_00000001"]
    assert len(names(tmp_path / "checkpoints")) == 3  # the unfinished folder, hidden
    write_run(tmp_path, 3)
    assert names(tmp_path / "checkpoints") == ["latest", "step_00000001", "step_00000003"]


def test_everything_is_flushed_before_the_rename(tmp_path, monkeypatch):
    flushed, renamed = [], []
    monkeypatch.setattr(write, "flush", lambda p: flushed.append(p.name))
    rename = write.os.rename
    monkeypatch.setattr(
        write.os, "rename", lambda a, b: renamed.append(list(flushed)) or rename(a, b)
    )
    write_run(tmp_path, 1)
    expected = {"rank_00000.safetensors", "index.json", "state.json", "open_clip_config.json"}
    assert expected <= set(renamed[0])


def test_no_pickle_in_any_file(tmp_path):
    folder = write_run(tmp_path, 1)
    for path in folder.iterdir():
        if path.suffix == ".json":
            json.loads(path.read_text())
        else:
            assert path.suffix == ".safetensors"


def test_pruning_never_takes_the_one_just_written(tmp_path):
    for step in (2, 3, 4):
        write_run(tmp_path, step)
    for step in (3, 4):  # damaged, so a run resumed from 2 writes 3 again
        with open(tmp_path / "checkpoints" / f"step_{step:08d}" / "state.json", "a") as file:
            file.write(" ")
    final = write_run(tmp_path, 3, keep=1)
    verify_checkpoint(final)
    assert newest_valid(tmp_path)[0] == final


def test_files_are_as_readable_as_any_new_file(tmp_path):
    folder = write_run(tmp_path, 3)
    modes = {path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert len(modes) == 1
