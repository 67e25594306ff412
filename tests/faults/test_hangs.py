"""Row 12: a rank is stopped, hangs or is slow: named, ended in time, and the next life joins."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.runs import finish, start
from tests.faults.conftest import Reference
from tests.faults.harness import (
    assert_exact_coverage,
    assert_same_weights,
    events,
    history,
    life,
    status,
)
from tests.faults.test_killed import _processes_of

pytestmark = pytest.mark.slow


def check_verdict(run: Path, culprit: int, step: int, *, silent: bool) -> None:
    """Events, status file, stacks and `clipkit status` agree on who hung."""
    (event,) = events(run, "hang")
    (named,) = event["ranks"]
    assert (named["rank"], named["silent"], event["step"]) == (culprit, silent, step)
    found = status(run)
    assert (found["state"], found["exit_status"]) == ("failed", 75)
    assert f"rank {culprit} (pid {named['pid']} on {named['host']})" in found["error"]
    assert f"step {step}" in (run / "hang" / f"rank_{1 - culprit:05d}.txt").read_text()
    assert (run / "hang" / f"rank_{culprit:05d}.txt").exists() == (not silent)
    command = [sys.executable, "-m", "clipkit", "status", str(run), "--json"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert asked.returncode == 1 and json.loads(asked.stdout)["state"] == "failed"


def check_next_life(place: Path, reference: Reference) -> None:
    """It joins the run without a fault, bit for bit."""
    second = life(reference.config, f"run.dir={place}", "run.resume=auto")
    assert second.status == 0, second.err
    assert history(place / "r") == history(reference.run)
    assert_exact_coverage(place / "r")
    assert_same_weights(place / "r", reference.run)
    assert status(place / "r")["state"] == "done"


@pytest.mark.parametrize("kind", ["stop", "hang"])
def test_a_rank_under_torchrun(tmp_path: Path, reference: Reference, kind: str) -> None:
    place = [f"run.dir={tmp_path}", "engine.timeout_s=10"]
    first = life(reference.config, *place, fault=f"{kind}@1:17")
    assert first.status != 0 and "training hangs in step 17: rank 1 (pid" in first.err
    check_verdict(tmp_path / "r", 1, 17, silent=kind == "stop")
    assert not _processes_of(tmp_path), "a process was left behind"
    check_next_life(tmp_path, reference)


def test_rank_0_is_stopped_with_the_store_the_log_and_the_lock(
    tmp_path: Path, reference: Reference
) -> None:
    job = str(random.randrange(20000))
    arguments = ["train", str(reference.config), f"run.dir={tmp_path}", "engine.timeout_s=10"]
    ranks = [
        start(
            arguments,
            CLIPKIT_FAULT="stop@0:17",
            SLURM_PROCID=str(rank),
            SLURM_NTASKS="2",
            SLURM_LOCALID=str(rank),
            SLURM_JOB_NODELIST="localhost",
            SLURM_TASKS_PER_NODE="2",
            SLURM_JOB_ID=job,
        )
        for rank in (0, 1)
    ]
    try:
        code, _, err = finish(ranks[1])
        assert code == 75 and f"kill -9 pid {ranks[0].pid} on" in err, err
        check_verdict(tmp_path / "r", 0, 17, silent=True)
    finally:
        ranks[0].kill()
        ranks[0].communicate()
    check_next_life(tmp_path, reference)


def test_a_slow_rank_is_reported_and_nothing_else(tmp_path: Path, reference: Reference) -> None:
    place = [f"run.dir={tmp_path}", "engine.timeout_s=10"]
    answer = life(reference.config, *place, fault="sleep@1:5:0.3")
    assert answer.status == 0, answer.err
    (event,) = events(tmp_path / "r", "straggler")
    assert event["ranks"] == [1] and event["alarm"] and "rank 1 (pid" in event["text"]
    assert "rank 1 (pid" in status(tmp_path / "r")["stragglers"][0]
    assert history(tmp_path / "r") == history(reference.run)
    assert_same_weights(tmp_path / "r", reference.run)
