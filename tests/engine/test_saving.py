"""When a run saves, and where it goes on from."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clipkit.checkpoint.remote import RemoteFolder
from clipkit.dist.group import World
from clipkit.engine import saving
from clipkit.engine.saving import pick_checkpoint, save_due, wants_save
from clipkit.errors import CheckpointError
from tests.fixtures_checkpoint import write_run


def run_with(**values: Any) -> Any:
    given = {"step": 7, "total_steps": 100, "save_every": 0, "save_minutes": 0.0, "saved_at": 0.0}
    return SimpleNamespace(world=World(), **{**given, **values})


def result_with(**values: bool) -> Any:
    return SimpleNamespace(**{"stop": False, "save": False, **values})


@pytest.mark.parametrize(
    ("run", "result", "expected"),
    [
        (run_with(), result_with(), False),
        (run_with(save_every=7), result_with(), True),
        (run_with(save_every=5), result_with(), False),
        (run_with(total_steps=7), result_with(), True),
        (run_with(), result_with(stop=True), True),
        (run_with(), result_with(save=True), True),
    ],
)
def test_when(run: Any, result: Any, expected: bool) -> None:
    assert save_due(run, result) is expected


def test_rank_0_looks_at_its_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving.time, "monotonic", lambda: 1000.0)
    assert wants_save(run_with(save_minutes=2.0, saved_at=880.0))
    assert not wants_save(run_with(save_minutes=2.0, saved_at=881.0))
    assert not wants_save(run_with(saved_at=0.0))
    other = run_with(save_minutes=2.0)
    other.world = World(rank=1)
    assert not wants_save(other)


def remote_of(run: Path, folder: Path) -> str:
    """The run's checkpoints, moved to a remote folder."""
    target = folder / run.name
    target.mkdir(parents=True)
    for checkpoint in (run / "checkpoints").glob("step_*"):
        checkpoint.rename(target / checkpoint.name)
    shutil.rmtree(run)
    return f"file://{folder}"


def test_nothing_there_is_a_new_run(tmp_path: Path) -> None:
    assert pick_checkpoint(tmp_path / "r", World()) == (None, [])
    (tmp_path / "far").mkdir()
    assert pick_checkpoint(tmp_path / "r", World(), f"file://{tmp_path}/far") == (None, [])


def test_the_newest_valid_one_and_what_was_passed_over(tmp_path: Path) -> None:
    folders = [write_run(tmp_path, step) for step in (1, 2)]
    assert pick_checkpoint(tmp_path, World()) == (folders[1], [])
    (folders[1] / "state.json").write_text("x" * (folders[1] / "state.json").stat().st_size)
    found, notes = pick_checkpoint(tmp_path, World())
    assert found == folders[0] and len(notes) == 1 and "step_00000002" in notes[0]


def test_none_valid_is_never_a_new_run(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", 1)
    (folder / "state.json").write_text("x" * (folder / "state.json").stat().st_size)
    for remote in (None, f"file://{tmp_path}/empty"):
        with pytest.raises(CheckpointError, match="no checkpoint is valid .*state.json"):
            pick_checkpoint(tmp_path / "r", World(), remote)


def test_a_replaced_one_gets_its_name_back(tmp_path: Path) -> None:
    folder = write_run(tmp_path, 1)
    folder.rename(folder.with_name("step_00000001.replaced-ab"))
    assert pick_checkpoint(tmp_path, World()) == (folder, []) and folder.is_dir()


def test_an_empty_folder_takes_the_remote_copy(tmp_path: Path) -> None:
    run = tmp_path / "r"
    for step in (1, 2):
        write_run(run, step)
    remote = remote_of(run, tmp_path / "far")
    found, notes = pick_checkpoint(run, World(), remote)
    assert found == run / "checkpoints" / "step_00000002"
    assert notes == [f"fetched {found} from {remote}"]
    assert pick_checkpoint(run, World(), remote) == (found, [])


def test_a_damaged_folder_takes_the_remote_copy(tmp_path: Path) -> None:
    run = tmp_path / "r"
    write_run(run, 2)
    remote = remote_of(run, tmp_path / "far")
    folder = write_run(run, 2)
    (folder / "state.json").write_text("x" * (folder / "state.json").stat().st_size)
    found, notes = pick_checkpoint(run, World(), remote)
    assert found == folder and "sha256 differs" in notes[0] and "fetched" in notes[-1]


def test_a_remote_folder_that_is_down_is_no_new_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(self: RemoteFolder) -> list[int]:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(RemoteFolder, "steps", down)
    with pytest.raises(CheckpointError, match="cannot be listed .no route to host"):
        pick_checkpoint(tmp_path / "r", World(), "memory://far")
