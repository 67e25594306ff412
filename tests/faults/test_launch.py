"""Rows 1 and 10 through the launch scripts: relaunched after a kill, requeued after a signal."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipkit.faults import VARIABLE
from tests.e2e.runs import finish_all
from tests.faults.conftest import Reference
from tests.faults.harness import (
    assert_exact_coverage,
    assert_same_weights,
    history,
    status,
    wait_for_step,
)
from tests.faults.test_killed import assert_nothing_runs
from tests.launch.fakes import Stage

# the real python; a fault strikes in the first life only, and MEETING goes to torchrun
PYTHON = """#!/bin/bash
case "$*" in
  *"torch.distributed.run"*)
    n=$(cat "$STAGE/lives" 2> /dev/null || echo 0); echo $((n + 1)) > "$STAGE/lives"
    if [ "$n" -gt 0 ]; then unset {variable}; fi
    set -- "$1" "$2" ${MEETING:-} "${@:3}" ;;
esac
exec {python} "$@"
"""
# as SLURM's: starts the task, passes USR1 on
SRUN = """while [ "$1" != bash ]; do shift; done
trap 'kill -USR1 $task' USR1
"$@" & task=$!
wait $task
while kill -0 $task 2> /dev/null; do wait $task; done
wait $task"""
ALONE = {"SLURM_JOB_NUM_NODES": "1", "OMP_NUM_THREADS": "1", "RELAUNCHES": "1"}


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """The scripts with real python and torchrun, fakes of SLURM's commands; all ended after it."""
    stage = Stage(tmp_path)
    python = stage.folder / "venv" / "bin" / "python"
    python.write_text(PYTHON.replace("{python}", sys.executable).replace("{variable}", VARIABLE))
    stage.program("srun", SRUN)
    name = f'echo "$*" >> {tmp_path}/scontrol\nif [ "$1" = show ]; then echo 127.0.0.1; fi'
    stage.program("scontrol", name)
    yield stage
    mark = f"STAGE={tmp_path}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (entry / "environ").read_bytes():
                os.kill(int(entry.name), signal.SIGKILL)


def joins(run: Path, reference: Reference) -> None:
    """The run is the one without a fault, bit for bit."""
    assert status(run)["state"] == "done"
    assert history(run) == history(reference.run)
    assert_exact_coverage(run)
    assert_same_weights(run, reference.run)


@pytest.mark.slow
def test_a_killed_rank_is_relaunched(stage: Stage, reference: Reference) -> None:
    arguments = ("2", str(reference.config), f"run.dir={stage.folder}/runs")
    process = stage.start("torchrun.sh", *arguments, **ALONE, **{VARIABLE: "kill@1:17"})
    code, _, err = stage.finish(process, timeout=600)
    assert code == 0, err
    assert stage.lines("lives") == ["2"] and "relaunch 1 of 1" in err
    joins(stage.run, reference)
    assert_nothing_runs(stage.run)


@pytest.mark.slow
@pytest.mark.parametrize("host", ["killed", "hung"])
def test_two_machines_are_relaunched(stage: Stage, reference: Reference, host: str) -> None:
    """They notice at different times, and meet again, whichever of them holds torchrun's store."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    arguments = ("1", str(reference.config), f"run.dir={stage.folder}/runs", "engine.timeout_s=20")
    env = {"NODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    machines = []
    for name, fault in (("killed", "kill@*:17"), ("hung", "hang@*:17")):
        own = {"STAGE": str(stage.folder / name), VARIABLE: fault}
        own["MEETING"] = f"--rdzv-conf=is_host={str(host == name).lower()}"
        Path(own["STAGE"]).mkdir()
        machines.append(stage.start("torchrun.sh", *arguments, **{**env, **own}))
    answers = finish_all(machines, timeout=300)
    assert [code for code, _, _ in answers] == [0, 0], answers
    assert all("crashed" in err for _, _, err in answers)
    assert status(stage.run)["state"] == "done"
    assert_exact_coverage(stage.run)


@pytest.mark.slow
def test_a_preempted_job_is_requeued_once_and_resumes(stage: Stage, reference: Reference) -> None:
    arguments = (str(reference.config), f"run.dir={stage.folder}/runs")
    env = {**ALONE, "LAUNCHER": "torchrun", "NPROC": "2", VARIABLE: "sleep@0:1:0.3"}
    process = stage.start("slurm.sbatch", *arguments, **env)
    wait_for_step(stage.run, 5, process)
    process.send_signal(signal.SIGUSR1)
    code, _, err = stage.finish(process, timeout=600)
    assert code == 0, err
    found = status(stage.run)
    assert found["state"] == "preempted" and 5 <= found["step"] < 40
    assert [c for c in stage.lines("scontrol") if c[:4] != "show"] == ["requeue 123"]
    again = stage.start("slurm.sbatch", *arguments, **env, SLURM_RESTART_COUNT="1")
    code, _, err = stage.finish(again, timeout=600)
    assert code == 0, err
    assert [c for c in stage.lines("scontrol") if c[:4] != "show"] == ["requeue 123"]
    joins(stage.run, reference)
    assert_nothing_runs(stage.run)
