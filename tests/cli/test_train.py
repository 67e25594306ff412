"""`train --check`, mistakes under several ranks are told once, a killed worker is one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from clipkit.cli.train import _run
from clipkit.config.load import load_config
from clipkit.dist.group import World
from clipkit.errors import DataError, TrainingError
from tests.e2e.runs import environment, finish, start, write_run


def test_check_says_ok_and_starts_nothing(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    status, out, err = finish(start(["train", str(config), "--check"]))
    assert (status, out.strip(), err) == (0, f"{config}: ok", "")
    assert not (tmp_path / "runs").exists()


def test_other_ranks_exit_with_the_same_status_and_say_nothing(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    for rank, lines in ((0, 1), (1, 0)):
        process = start(["train", str(config), "optim.lrr=1"], RANK=str(rank), WORLD_SIZE="2")
        status, _, err = finish(process)
        assert status == 2
        assert len(err.splitlines()) == lines


def test_a_killed_loader_worker_is_one_line(monkeypatch: Any, capsys: Any, tmp_path: Path) -> None:
    def killed(*_: object) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    monkeypatch.setattr("clipkit.dist.group.setup", lambda *_, **__: World())
    monkeypatch.setattr("clipkit.engine.build.set_threads", lambda *_: None)
    monkeypatch.setattr("clipkit.engine.build.build_run", killed)
    assert _run(load_config(write_run(tmp_path), [])) == 1  # started anew
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and err.startswith("clipkit: a loader worker")


@pytest.mark.parametrize(
    ("error", "status", "why"),
    [
        (RuntimeError("out of memory"), 1, "RuntimeError: out of memory"),
        (DataError("no shards"), 3, "no shards"),
        (TrainingError("rolled back too often"), 5, "rolled back too often"),
    ],
)
def test_however_a_run_ends_its_status_file_says_so(
    monkeypatch: Any, capsys: Any, tmp_path: Path, error: Exception, status: int, why: str
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr("clipkit.dist.group.setup", lambda *_, **__: World())
    monkeypatch.setattr("clipkit.engine.build.set_threads", lambda *_: None)
    monkeypatch.setattr("clipkit.engine.build.build_run", fails)
    config = load_config(write_run(tmp_path), [])
    run = tmp_path / "runs" / "r"
    assert _run(config) == status and not run.exists()  # no run yet, nothing to say of it
    run.mkdir(parents=True)
    (run / "status.json").write_text('{"state": "preempted", "step": 7, "exit_status": 0}')
    assert _run(config) == status
    found = json.loads((run / "status.json").read_text())
    assert (found["state"], found["exit_status"]) == ("failed", status)
    assert (found["error"], found["step"]) == (why, 7)
    assert ("Traceback" in capsys.readouterr().err) == (status == 1)


@pytest.mark.slow
def test_a_loader_worker_killed_while_the_run_goes_on(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    process = start(["train", str(config), "train.total_steps=100000", "eval.tasks=[]"])
    log = tmp_path / "runs" / "r" / "metrics.jsonl"
    while not (log.exists() and log.read_text().count("\n") > 3):
        assert process.poll() is None
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    names = {Path(f"/proc/{c}/comm").read_text().strip(): int(c) for c in children}
    os.kill(names["pt_data_worker"], signal.SIGKILL)
    status, _, err = finish(process)
    assert status == 1 and "Traceback" not in err
    assert err.splitlines()[-1].startswith("clipkit: a loader worker")


@pytest.mark.slow
def test_what_hangs_while_a_run_is_built_ends(tmp_path: Path) -> None:
    code = f"""
import threading
import clipkit.cli.train, clipkit.dist.watchdog, clipkit.engine.build
from clipkit.config.load import load_config
clipkit.dist.watchdog._MARGIN_S = 0.1
clipkit.engine.build.build_run = lambda *_: threading.Event().wait()
clipkit.cli.train._run(load_config({str(write_run(tmp_path))!r}, ["engine.timeout_s=0.1"]))
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment())
    assert done.returncode == 1 and "Timeout" in done.stderr and "in wait" in done.stderr


@pytest.mark.slow
def test_who_reads_the_output_may_leave(tmp_path: Path) -> None:
    """As `| tee log` that was killed: the run goes on, and a failure still has its status."""
    config = write_run(tmp_path, train={"total_steps": 4})
    for name, override, expected in (
        ("r", "log.every=1", 0),
        ("x", "addons=[{kind: ema},{kind: ema}]", 2),
    ):
        process = start(["train", str(config), f"run.name={name}", "data.workers=0", override])
        assert process.stdout and process.stderr
        process.stdout.close()
        process.stderr.close()
        assert process.wait(100) == expected
        found = json.loads((tmp_path / "runs" / name / "status.json").read_text())
        assert found["state"] == ("failed" if expected else "done"), found
