"""status.json: whole at any moment, final at the end, and never in the way."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path

import pytest

from clipkit.engine.log import RunLog
from clipkit.engine.run_folder import claim
from clipkit.engine.status import StatusFile, read_status


def test_a_life_from_its_first_step_to_its_end(tmp_path: Path) -> None:
    log = RunLog(tmp_path, main=True, progress=False)
    log.event("skipped", 1, "loss not finite", alarm=True)
    status = StatusFile(tmp_path, main=True, log=log, every_s=0)
    status.update(step=1, total_steps=9, samples_per_s=10.0, last_checkpoint=None)
    values = read_status(tmp_path)
    assert (values["state"], values["exit_status"], values["error"]) == ("running", None, None)
    assert (values["step"], values["total_steps"], values["pid"]) == (1, 9, os.getpid())
    assert values["alarms"]["count"] == 1
    assert values["alarms"]["last"][0]["text"] == "loss not finite"
    assert values["eta_s"] is None
    status.update(step=5)
    assert read_status(tmp_path)["eta_s"] >= 0
    status.finish("preempted", step=6)
    status.update(step=7)  # the end is the end
    status.finish("failed", error="too late")
    values = read_status(tmp_path)
    assert (values["state"], values["step"], values["exit_status"]) == ("preempted", 6, 0)
    assert sorted(os.listdir(tmp_path)) == ["events.jsonl", "status.json"]


def test_updates_are_written_now_and_then(tmp_path: Path) -> None:
    status = StatusFile(tmp_path, main=True, every_s=3600)
    for step in range(5):
        status.update(step=step)
    assert read_status(tmp_path)["step"] == 0
    status.finish("done")
    assert read_status(tmp_path)["step"] == 4


def test_a_start_that_fails_early_keeps_what_is_known(tmp_path: Path) -> None:
    StatusFile(tmp_path, main=True).finish("preempted", step=12, last_checkpoint="step_00000012")
    StatusFile(tmp_path, main=True).finish("failed", exit_status=3, error="no shards")
    values = read_status(tmp_path)
    assert (values["state"], values["exit_status"], values["error"]) == ("failed", 3, "no shards")
    assert (values["step"], values["last_checkpoint"]) == (12, "step_00000012")
    again = StatusFile(tmp_path, main=True)
    again.update(step=12)
    assert read_status(tmp_path)["error"] is None


def test_another_process_s_run_is_left_alone(tmp_path: Path) -> None:
    lock = claim(tmp_path)
    status = StatusFile(tmp_path, main=True)
    status.update(step=3)
    (tmp_path / ".lock").write_text("pid 1 on elsewhere")
    StatusFile(tmp_path, main=True).finish("failed", error="the folder is taken")
    assert read_status(tmp_path)["state"] == "running"
    deputy = StatusFile(tmp_path, main=False)
    deputy.finish("failed", error="not my business")
    assert read_status(tmp_path)["state"] == "running"
    deputy.take_over()  # the rank that writes hangs
    deputy.finish("failed", exit_status=75, error="rank 0 hangs")
    values = read_status(tmp_path)
    assert (values["error"], values["step"]) == ("rank 0 hangs", 3)
    lock.close()


def test_a_full_disk_is_no_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = StatusFile(tmp_path, main=True, every_s=0)
    status.update(step=1)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr("clipkit.engine.status.os.replace", full)
        status.update(step=2)
        assert read_status(tmp_path)["step"] == 1 and os.listdir(tmp_path) == ["status.json"]
    status.update(step=3)
    assert read_status(tmp_path)["step"] == 3
    status.update(step=4, odd={1: object()}, circle=[])
    assert read_status(tmp_path)["step"] == 4


def test_no_folder_no_file(tmp_path: Path) -> None:
    StatusFile(tmp_path / "none", main=True).finish("failed", error="x")
    assert not (tmp_path / "none").exists()


def test_secrets_are_masked(tmp_path: Path) -> None:
    StatusFile(tmp_path, main=True).finish("failed", error="s3://u:hunter2@host/x: refused")
    assert "hunter2" not in (tmp_path / "status.json").read_text()


def test_a_clock_that_jumps_back_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = StatusFile(tmp_path, main=True, every_s=0)
    status.update(step=1, total_steps=10)
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now - 86400)
    status.update(step=2)
    values = json.loads((tmp_path / "status.json").read_text())
    assert values["step"] == 2 and values["eta_s"] >= 0


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00\xff", "[" * 100_000])
def test_what_cannot_be_read_is_no_status(tmp_path: Path, text: str) -> None:
    (tmp_path / "status.json").write_text(text, encoding="latin-1")
    assert read_status(tmp_path) == {}
