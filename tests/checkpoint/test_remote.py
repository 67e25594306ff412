"""Copies elsewhere: whole or not counted, kept by the same rules, fetched only when they verify."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from clipkit.checkpoint.host_copy import Slice
from clipkit.checkpoint.read import CheckpointReader
from clipkit.checkpoint.remote import (
    RemoteFolder,
    fetch_newest,
    refuse_copies,
    run_url,
    verify_remote,
)
from clipkit.checkpoint.saver import Saver
from clipkit.checkpoint.verify import list_checkpoints, newest_valid, step_of
from clipkit.dist.group import World
from clipkit.errors import CheckpointError, ConfigError
from tests.fixtures_checkpoint import write_run


@pytest.fixture(params=["memory", "file", "path"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A remote folder of each kind, empty."""
    kinds = {
        "memory": "memory://copies",
        "file": f"file://{tmp_path}/far",
        "path": f"{tmp_path}/far",
    }
    yield kinds[request.param]
    if request.param == "memory":
        fsspec.filesystem("memory").rm("/copies", recursive=True)


def path_in(remote: str, *names: str) -> tuple[Any, str]:
    return fsspec.core.url_to_fs("/".join([remote, "r", *names]))


def save(run: Path, remote: str, steps: list[int], **options: Any) -> list[tuple[str, str]]:
    """What a life tells that saves after each of these steps."""
    told: list[tuple[str, str]] = []
    saver = Saver(run, World(), remote=remote, tell=lambda k, t, v: told.append((k, t)), **options)
    for step in steps:
        one = Slice("weight", "w", (4,), 0, torch.full((4,), float(step)))
        saver.save(step, slices=[one], state={"step": step}, model_config={})
        saver.wait()
        if saver._mirror is not None and saver._mirror._thread is not None:
            saver._mirror._thread.join()
    saver.close()
    return told


def change(remote: str, *names: str, data: bytes | None = None) -> None:
    """Another content for a file there, or none."""
    fs, path = path_in(remote, *names)
    before = fs.cat_file(path)
    fs.rm_file(path)
    if data is not None:
        fs.pipe_file(path, data or bytes(len(before)))


def test_there_as_here(tmp_path: Path, remote: str) -> None:
    told = save(tmp_path / "r", remote, [1, 2, 3, 4], keep=2, keep_every=2)
    there = RemoteFolder(run_url(remote, tmp_path / "r"))
    assert there.steps() == [2, 3, 4]
    assert [step_of(p) for p in list_checkpoints(tmp_path / "r")] == [2, 3, 4]
    assert [verify_remote(there, step) for step in there.steps()] == [4, 4, 4]
    assert [text.split()[1] for kind, text in told if kind == "uploaded"] == [
        f"step_{n:08d}" for n in (1, 2, 3, 4)
    ]


def test_an_empty_run_folder_goes_on_from_there(tmp_path: Path, remote: str) -> None:
    save(tmp_path / "r", remote, [1, 2])
    shutil.rmtree(tmp_path / "r")
    found, skipped = fetch_newest(remote, tmp_path / "r")
    assert found == tmp_path / "r" / "checkpoints" / "step_00000002" and not skipped
    assert newest_valid(tmp_path / "r") == (found, [])
    assert CheckpointReader(found).full("weight", "w").tolist() == [2.0] * 4


@pytest.mark.parametrize(
    ("names", "data", "why"),
    [
        (("state.json",), b"", "sha256 differs"),
        (("state.json",), None, "not a complete checkpoint"),
        (("index.json",), b"short", "not a complete checkpoint"),
        (("manifest.json",), None, "not a complete checkpoint"),
        (("manifest.json",), b"{", "not a complete checkpoint"),
        (("manifest.json",), b'{"files": {"../x": {"bytes": 1}}}', "not a complete checkpoint"),
    ],
)
def test_a_damaged_copy_is_passed_over(
    tmp_path: Path, remote: str, names: tuple[str, ...], data: bytes | None, why: str
) -> None:
    save(tmp_path / "r", remote, [1, 2])
    change(remote, "step_00000002", *names, data=data)
    there = RemoteFolder(run_url(remote, tmp_path / "r"))
    assert verify_remote(there, 1) == 4
    with pytest.raises(CheckpointError, match=f"step_00000002.*{why}"):
        verify_remote(there, 2)
    shutil.rmtree(tmp_path / "r")
    found, skipped = fetch_newest(remote, tmp_path / "r")
    assert found is not None and step_of(found) == 1
    assert len(skipped) == 1 and "step_00000002" in skipped[0] and why in skipped[0]
    assert {p.name for p in (tmp_path / "r" / "checkpoints").iterdir()} == {
        ".writer", "step_00000001",
    }  # fmt: skip
    told = save(tmp_path / "r", remote, [3])  # the rest is mended or goes as it came
    assert ("save_failed" not in dict(told)) and verify_remote(there, 3) == 4


def test_an_empty_remote_folder(tmp_path: Path, remote: str) -> None:
    (tmp_path / "far").mkdir(exist_ok=True)
    fsspec.filesystem("memory").mkdirs("/copies", exist_ok=True)
    assert fetch_newest(remote, tmp_path / "r") == (None, [])


def test_a_failed_copy_is_told_and_made_up_for(
    tmp_path: Path, remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload, calls = RemoteFolder.upload, []

    def flaky(self: RemoteFolder, folder: Path) -> None:
        calls.append(folder.name)
        if len(calls) == 1:
            raise ConnectionError("the network is down")
        upload(self, folder)

    monkeypatch.setattr(RemoteFolder, "upload", flaky)
    told = save(tmp_path / "r", remote, [1, 2])
    kinds = [kind for kind, _ in told]
    assert kinds.count("upload_failed") == 1 and "save_failed" not in kinds
    assert "step_00000001 was not copied to" in dict(told)["upload_failed"]
    assert RemoteFolder(run_url(remote, tmp_path / "r")).steps() == [1, 2]


def test_a_remote_folder_that_is_down_costs_no_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(self: RemoteFolder) -> list[int]:
        raise TimeoutError("no answer")

    monkeypatch.setattr(RemoteFolder, "steps", down)
    told = save(tmp_path / "r", "memory://copies", [1])
    assert [kind for kind, _ in told] == ["saved", "upload_failed", "upload_failed"]
    with pytest.raises(CheckpointError, match="memory://copies/r: cannot be listed .no answer"):
        fetch_newest("memory://copies", tmp_path / "other" / "r")


def test_what_an_earlier_life_could_not_copy_comes_at_the_end(tmp_path: Path, remote: str) -> None:
    write_run(tmp_path / "r", 1)
    told = save(tmp_path / "r", remote, [])
    assert [kind for kind, _ in told] == ["uploaded"]
    assert save(tmp_path / "r", remote, []) == []


def test_a_remote_folder_that_never_answers_ends_in_an_alarm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = threading.Event()
    monkeypatch.setattr(RemoteFolder, "steps", lambda self: hangs.wait(20))
    monkeypatch.setattr("clipkit.checkpoint.remote._PATIENCE_S", 0.1)
    write_run(tmp_path / "r", 1)
    told = save(tmp_path / "r", "memory://copies", [])
    hangs.set()
    assert "no end of the copy" in dict(told)["upload_failed"]


def test_later_copies_of_a_past_that_was_left_neither_count_nor_go(
    tmp_path: Path, remote: str
) -> None:
    save(tmp_path / "r", remote, [7, 8, 9])
    shutil.rmtree(tmp_path / "r")
    save(tmp_path / "r", remote, [1, 2, 3])
    there = RemoteFolder(run_url(remote, tmp_path / "r"))
    assert there.steps() == [2, 3, 8, 9]
    save(tmp_path / "r", remote, [8])
    assert there.steps() == [3, 8, 9] and verify_remote(there, 8) == 4


def test_a_damaged_one_here_is_not_copied(tmp_path: Path, remote: str) -> None:
    folder = write_run(tmp_path / "r", 1)
    (folder / "state.json").write_text("x")
    told = save(tmp_path / "r", remote, [2])
    assert RemoteFolder(run_url(remote, tmp_path / "r")).steps() == [2]
    assert "step_00000001 was not copied" in dict(told)["upload_failed"]


def test_the_same_step_anew_replaces_its_copy(tmp_path: Path, remote: str) -> None:
    save(tmp_path / "r", remote, [1])
    write_run(tmp_path / "r", 1)
    save(tmp_path / "r", remote, [2])
    shutil.rmtree(tmp_path / "r" / "checkpoints")
    change(remote, "step_00000002", "manifest.json")
    found, _ = fetch_newest(remote, tmp_path / "r")
    assert found is not None and CheckpointReader(found).names("buffer") == ["count"]


def test_a_copy_counts_only_when_all_of_it_is_new(tmp_path: Path, remote: str) -> None:
    folder = write_run(tmp_path / "r", 1)
    there = RemoteFolder(run_url(remote, tmp_path / "r"))
    there.upload(folder)
    assert verify_remote(there, 1) == 4
    put, names = there._fs.put_file, []

    def breaks(local: str, far: str, **options: Any) -> None:
        names.append(Path(local).name)
        if len(names) == 2:
            raise ConnectionError("gone")
        put(local, far, **options)

    there._fs.put_file = breaks
    try:
        with pytest.raises(ConnectionError):
            there.upload(folder)
        assert there.manifest(1) is None and there.steps() == [1]
        there.upload(folder)
    finally:
        del there._fs.put_file
    assert names[-1] == "manifest.json" and verify_remote(there, 1) == 4


def test_a_new_run_does_not_mix_with_an_earlier_one_of_its_name(
    tmp_path: Path, remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_copies(remote, tmp_path / "r")
    save(tmp_path / "r", remote, [5])
    with pytest.raises(ConfigError, match=r"earlier run \(step 5\); set run.resume=auto"):
        refuse_copies(remote, tmp_path / "r")
    refuse_copies(remote, tmp_path / "other")

    def down(self: RemoteFolder) -> list[int]:
        raise TimeoutError("no answer")

    monkeypatch.setattr(RemoteFolder, "steps", down)
    refuse_copies(remote, tmp_path / "r")


def test_urls(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="checkpoint.remote=nope://x"):
        RemoteFolder("nope://user:secret@x")
    assert run_url("s3://b/p/", tmp_path / "runs" / "x") == "s3://b/p/x"
