"""How a run stands, read from files that a dead or distant process left."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from clipkit.engine.run_folder import claim
from clipkit.engine.standing import standing
from clipkit.errors import ConfigError


def write(run: Path, age_s: float = 0, **values: Any) -> Path:
    """A status file of that age."""
    run.mkdir(exist_ok=True)
    path = run / "status.json"
    path.write_text(json.dumps({"state": "running", "host": socket.gethostname(), **values}))
    os.utime(path, (time.time() - age_s,) * 2)
    return run


def test_running_needs_a_process(tmp_path: Path) -> None:
    run = write(tmp_path / "r", step=3)
    lock = claim(run)
    assert standing(run)["state"] == "running"
    write(run, age_s=7200)
    assert standing(run)["state"] == "stalled"
    lock.close()
    assert standing(run)["state"] == "dead"


def test_a_lock_on_another_machine_may_be_out_of_sight(tmp_path: Path) -> None:
    run = write(tmp_path / "r", host="elsewhere")
    assert standing(run)["state"] == "running"
    write(run, age_s=1000, host="elsewhere")
    assert standing(run)["state"] == "dead"


@pytest.mark.parametrize("state", ["done", "failed", "preempted"])
def test_an_end_is_an_end(tmp_path: Path, state: str) -> None:
    found = standing(write(tmp_path / "r", age_s=1e6, state=state, eta_s=None))
    assert found["state"] == state and found["eta_s"] is None


def test_the_newest_complete_checkpoint_counts(tmp_path: Path) -> None:
    run = write(tmp_path / "r")
    assert standing(run)["checkpoint"] is None
    for step in (10, 20):
        (run / "checkpoints" / f"step_{step:08d}").mkdir(parents=True)
    (run / "checkpoints" / "step_00000010" / "manifest.json").write_text("{}")
    found = standing(run)["checkpoint"]
    assert (found["name"], found["step"]) == ("step_00000010", 10) and found["age_s"] >= 0


def test_the_last_metrics(tmp_path: Path) -> None:
    run = write(tmp_path / "r")
    rows = [{"step": 1, "train/loss": 2.0, "train/data_wait": 0.5}, {"step": 1, "eval/x": 1}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows) + '{"st')
    found = standing(run)
    assert (found["loss"], found["data_wait"]) == (2.0, 0.5)


def test_no_status_and_no_folder(tmp_path: Path) -> None:
    assert standing(tmp_path)["state"] == "unknown"
    with pytest.raises(ConfigError, match="no such run folder"):
        standing(tmp_path / "none")
