"""`clipkit status`: one run, several, JSON, and an exit status that a script can use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from clipkit.cli.main import app
from clipkit.cli.status import duration
from clipkit.engine.log import RunLog
from clipkit.engine.status import StatusFile


def ask(*arguments: object) -> Any:
    """`clipkit status ...`."""
    return CliRunner().invoke(app, ["status", *map(str, arguments)])


def make(folder: Path, state: Any, **values: Any) -> Path:
    """A run that ended so."""
    folder.mkdir()
    log = RunLog(folder, main=True, progress=False)
    log.event("save_failed", 30, "disk full [/tmp]", alarm=True)
    status = StatusFile(folder, main=True, log=log)
    status.update(step=40, total_steps=80, samples_per_s=1234.5, skipped=2, bad_samples=7)
    (folder / "metrics.jsonl").write_text(
        '{"step": 40, "train/loss": 1.25, "train/data_wait": 0.125, "train/peak_memory_gb": 3.0}\n'
    )
    if state != "running":
        status.finish(state, **values)
    return folder


def test_one_run_says_everything(tmp_path: Path) -> None:
    slow = ["rank 3 (pid 9 on n1): 0.3 s"]
    run = make(tmp_path / "a", "failed", error="a crash", exit_status=1, stragglers=slow)
    answer = ask(run)
    assert answer.exit_code == 1
    for text in (
        "failed 0 s ago, exit status 1", "a crash", "40 of 80 (50%)", "1234 samples/s", "1.2500",
        "12%", "3.0 GB", "checkpoint  none", "2 batches", "bad samples  7", "rank 3 (pid 9 on n1)",
        "step 30: disk full [/tmp]",
    ):  # fmt: skip
        assert text in answer.output, text


@pytest.mark.parametrize(
    ("state", "status"), [("done", 0), ("preempted", 0), ("failed", 1), ("running", 1)]
)
def test_exit_status(tmp_path: Path, state: str, status: int) -> None:
    """The one that says running is dead: nobody holds its lock."""
    answer = ask(make(tmp_path / "a", state))
    assert answer.exit_code == status
    assert ("dead since" in answer.output) == (state == "running")


def test_several_runs_make_a_table(tmp_path: Path) -> None:
    runs = [make(tmp_path / "a", "done"), make(tmp_path / "b", "preempted"), tmp_path]
    answer = ask(*runs)
    assert answer.exit_code == 1 and "unknown" in answer.output
    assert ask(*runs[:2]).exit_code == 0


def test_json(tmp_path: Path) -> None:
    runs = [make(tmp_path / "a", "done"), make(tmp_path / "b", "preempted")]
    found = [json.loads(line) for line in ask(*runs, "--json").output.splitlines()]
    assert [x["state"] for x in found] == ["done", "preempted"]
    assert found[0]["loss"] == 1.25 and found[0]["alarms"]["count"] == 1


def test_no_such_run(tmp_path: Path) -> None:
    assert "no such run folder" in str(ask(tmp_path / "none").exception)


def test_durations() -> None:
    assert [duration(s) for s in (None, 5, 90, 7300, 200000)] == [
        "?", "5 s", "1 min", "2 h 1 min", "2 d 7 h",
    ]  # fmt: skip
