"""A checkpoint with any fault is refused, the fault is named, and an older one is found."""

import errno
import json
import re
from pathlib import Path

import pytest

from clipkit.checkpoint import verify
from clipkit.checkpoint.verify import (
    find_checkpoint,
    list_checkpoints,
    newest_valid,
    read_json,
    step_of,
    verify_checkpoint,
)
from clipkit.errors import CheckpointError
from tests.fixtures_checkpoint import write_run

FILES = ["rank_00000.safetensors", "index.json", "state.json", "open_clip_config.json"]


@pytest.fixture
def folder(tmp_path):
    return write_run(tmp_path, 7)


def refused(folder, pattern):
    with pytest.raises(CheckpointError) as caught:
        verify_checkpoint(folder)
    assert re.search(pattern, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


def change_manifest(folder, change):
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest["files"])
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_whole_one_passes(folder):
    assert set(verify_checkpoint(folder)["files"]) == set(FILES)


@pytest.mark.parametrize("look", ["is_file", "stat"])
def test_one_that_the_disk_cannot_read_is_passed_over(tmp_path, monkeypatch, look):
    older, ill = write_run(tmp_path, 1), write_run(tmp_path, 2)
    honest = getattr(Path, look)

    def looking(self, **options):
        if self.parent == ill:
            raise OSError(errno.EIO, "Input/output error")
        return honest(self, **options)

    monkeypatch.setattr(Path, look, looking)
    found, skipped = newest_valid(tmp_path)
    assert found == older and "step_00000002" in skipped[0] and "Input/output" in skipped[0]


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_damage_to_every_file(folder, name):
    path = folder / name
    whole = path.read_bytes()
    for position in (0, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        refused(folder, rf"{name} was changed")
    path.write_bytes(whole[:-1])
    refused(folder, rf"{name} has {len(whole) - 1} bytes, {len(whole)} were written")
    path.unlink()
    refused(folder, rf"{name} is missing")
    path.write_bytes(whole)
    verify_checkpoint(folder)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"files": {}}', '{"files": []}', "[" * 100_000]
)
def test_broken_manifest(folder, content):
    (folder / "manifest.json").write_text(content)
    refused(folder, r"manifest\.json")


def test_missing_manifest(folder):
    (folder / "manifest.json").unlink()
    refused(folder, r"has no manifest\.json")


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a/b", "..", ".", ""])
def test_names_that_lead_elsewhere(folder, name):
    (folder.parent / "outside").write_text("x")
    change_manifest(folder, lambda files: files.update({name: files["index.json"]}))
    refused(folder, "is not a plain file entry|is missing")


def test_an_entry_that_is_no_entry(folder):
    change_manifest(folder, lambda files: files.update({"index.json": "x"}))
    refused(folder, "'index.json' is not a plain file entry")


def test_a_disk_that_fails_to_read_is_a_checkpoint_error(folder, monkeypatch):
    def fail(path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(verify, "sha256", fail)
    refused(folder, "cannot be read: .*Input/output error")


def test_newest_valid_falls_back_and_says_why(tmp_path):
    folders = [write_run(tmp_path, step) for step in (1, 2, 3)]
    assert newest_valid(tmp_path) == (folders[2], [])
    (folders[2] / "state.json").write_text("{}")
    (folders[1] / "manifest.json").unlink()
    found, skipped = newest_valid(tmp_path)
    assert found == folders[0] and len(skipped) == 2
    assert "step_00000003/state.json" in skipped[0] and "step_00000002" in skipped[1]
    (folders[0] / "index.json").unlink()
    found, skipped = newest_valid(tmp_path)
    assert found is None and len(skipped) == 3
    assert newest_valid(tmp_path / "absent") == (None, [])


def test_latest_is_for_people_only(tmp_path):
    folder = write_run(tmp_path, 1)
    (tmp_path / "checkpoints" / "latest").write_text("step_00000099\n")
    assert newest_valid(tmp_path)[0] == folder


def test_list_in_order_and_only_step_folders(tmp_path):
    for step in (100, 20, 3):
        write_run(tmp_path, step)
    (tmp_path / "checkpoints" / "step_5").mkdir()
    (tmp_path / "checkpoints" / ".step_00000009.tmp-1").mkdir()
    assert [step_of(p) for p in list_checkpoints(tmp_path)] == [3, 20, 100]


def test_find_by_run_or_checkpoint_folder(tmp_path, folder):
    assert find_checkpoint(tmp_path) == folder and find_checkpoint(str(folder)) == folder
    with pytest.raises(CheckpointError, match="no such folder"):
        find_checkpoint(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="holds no valid checkpoint$"):
        find_checkpoint(tmp_path / "checkpoints")
    (folder / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        find_checkpoint(folder)
    with pytest.raises(CheckpointError, match=r"holds no valid checkpoint \(.*manifest\.json\)"):
        find_checkpoint(tmp_path)


def test_read_json(tmp_path):
    with pytest.raises(CheckpointError, match=r"a\.json: cannot be read"):
        read_json(tmp_path / "a.json")


def test_a_rename_that_is_seen_late_is_waited_for(tmp_path, monkeypatch):
    older, newer = write_run(tmp_path, 1), write_run(tmp_path, 2)
    hidden = newer.rename(tmp_path / "hidden")
    naps = []

    def nap(seconds):
        naps.append(seconds)
        if len(naps) == 2:
            hidden.rename(newer)

    monkeypatch.setattr(verify.time, "sleep", nap)
    assert newest_valid(tmp_path) == (newer, []) and len(naps) == 2
    newer.rename(hidden)
    naps[:] = [0.0] * 5
    assert newest_valid(tmp_path) == (older, [])  # it never came: not for ever


@pytest.mark.parametrize("name", ["manifest.json", "index.json"])
def test_files_that_are_seen_late_are_waited_for(tmp_path, monkeypatch, name):
    write_run(tmp_path, 1)
    newer = write_run(tmp_path, 2)
    whole = (newer / name).read_bytes()
    (newer / name).write_bytes(whole[:9])
    monkeypatch.setattr(verify.time, "sleep", lambda seconds: (newer / name).write_bytes(whole))
    assert newest_valid(tmp_path) == (newer, [])


def test_a_whole_run_is_not_waited_for(tmp_path, monkeypatch):
    def fail(seconds):
        raise AssertionError

    monkeypatch.setattr(verify.time, "sleep", fail)
    assert newest_valid(tmp_path) == (None, [])
    folder = write_run(tmp_path, 1)
    for text in ("", "step_0000", "\x00", "../step_00000009", "step_00000001\n"):
        (tmp_path / "checkpoints" / "latest").write_text(text)
        assert newest_valid(tmp_path) == (folder, [])
    (tmp_path / "checkpoints" / "latest").unlink()
    assert newest_valid(tmp_path) == (folder, [])


def test_no_clock_has_a_say(tmp_path, monkeypatch):
    import os

    folders = [write_run(tmp_path, step) for step in (1, 2, 3)]
    for stamp, folder in zip((4e9, 1e9, 1), folders):
        os.utime(folder, (stamp, stamp))
    monkeypatch.setattr(verify.time, "time", lambda: -1e9)
    assert newest_valid(tmp_path)[0] == folders[2]


def test_a_replaced_one_counts_while_its_name_is_free(tmp_path):
    folder = write_run(tmp_path, 3)
    aside = folder.rename(folder.with_name("step_00000003.replaced-ab12"))
    assert list_checkpoints(tmp_path) == [aside] and newest_valid(tmp_path)[0] == aside
    assert step_of(aside) == 3
    again = write_run(tmp_path, 3)
    assert list_checkpoints(tmp_path) == [again] and not aside.exists()


def test_order_is_by_step_not_by_name(tmp_path):
    for step in (99_999_999, 100_000_000):
        write_run(tmp_path, step)
    assert [step_of(p) for p in list_checkpoints(tmp_path)] == [99_999_999, 100_000_000]


@pytest.mark.parametrize("looks", [3, 7, None])
def test_what_another_rank_sees_is_waited_for_a_minute(tmp_path, monkeypatch, looks):
    pauses = []

    def nap(seconds):
        pauses.append(seconds)
        if len(pauses) == looks:
            write_run(tmp_path, 2)

    monkeypatch.setattr(verify.time, "sleep", nap)
    verify.wait_for(tmp_path / "checkpoints" / "step_00000002")
    assert len(pauses) == (looks or 7) and sum(pauses) < 90
