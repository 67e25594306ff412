"""What happens after a life of a run has ended is decided by its status file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.launch.fakes import Stage, alive

CRASH = "status running; kill -KILL $$"


def torchrun(stage: Stage, *overrides: str, **env: str) -> tuple[int, str, str]:
    return stage.play("torchrun.sh", "2", str(stage.config), *overrides, **env)


def test_a_run_that_is_done_is_started_once(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "status done")
    assert torchrun(stage, "optim.lr=1e-4")[0] == 0
    (life,) = stage.lives
    assert (
        "--standalone --nproc_per_node=2" in life
        and "--signals-to-handle=SIGTERM,SIGINT,SIGUSR1" in life
    )
    assert life.endswith(f"-m clipkit train {stage.config} optim.lr=1e-4")
    assert stage.lines("calls")[0].startswith("check 2 ")


def test_a_crash_is_started_anew_and_resumes(tmp_path: Path) -> None:
    hang = "status failed 75; exit 1"
    stage = Stage(tmp_path, CRASH, hang, "exit 1", "status done")
    status, _, err = torchrun(stage)
    assert status == 0 and len(stage.lives) == 4
    assert [life.count("run.resume=auto") for life in stage.lives] == [0, 1, 1, 1]
    assert "crashed (exit status 137); relaunch 1 of 3 in 0 s" in err


def test_the_reader_of_the_output_may_leave(tmp_path: Path) -> None:
    stage = Stage(tmp_path, CRASH, "status done")
    process = stage.start("torchrun.sh", "2", str(stage.config))
    assert process.stdout and process.stderr
    process.stdout.close()
    process.stderr.close()
    assert process.wait(60) == 0 and len(stage.lives) == 2


@pytest.mark.parametrize("number", [2, 3, 4, 5])
def test_what_would_fail_again_is_not(tmp_path: Path, number: int) -> None:
    stage = Stage(tmp_path, f"status failed {number}; exit 1")  # torchrun's own status is always 1
    assert torchrun(stage)[0] == number and len(stage.lives) == 1


def test_one_found_by_the_check_starts_nothing(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "status done")
    assert torchrun(stage, CHECK="3")[0] == 3 and stage.lives == []


def test_it_gives_up_when_no_checkpoint_is_made_between(tmp_path: Path) -> None:
    stage = Stage(tmp_path, CRASH)
    status, _, err = torchrun(stage, RELAUNCHES="2")
    assert status == 137 and len(stage.lives) == 3
    assert "crashed 3 times without a new checkpoint; giving up" in err


def test_a_new_checkpoint_sets_the_count_back(tmp_path: Path) -> None:
    lives = [f"checkpoint {i}; {CRASH}" for i in range(1, 4)]
    stage = Stage(tmp_path, *lives, "status done")
    assert torchrun(stage, RELAUNCHES="1")[0] == 0 and len(stage.lives) == 4


def test_the_pause_grows(tmp_path: Path) -> None:
    stage = Stage(tmp_path, CRASH)
    stage.program("sleep", "exit 0")
    err = torchrun(stage, RELAUNCH_PAUSE="200", RELAUNCHES="4")[2]
    assert [line.rsplit(" in ")[1] for line in err.splitlines() if "relaunch " in line] == [
        "200 s", "400 s", "600 s", "600 s"
    ]  # fmt: skip


def test_the_state_of_an_earlier_life_says_nothing(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "exit 1")
    stage.run.mkdir(parents=True)
    (stage.run / "status.json").write_text('{"state": "preempted"}')
    assert torchrun(stage, RELAUNCHES="1")[0] == 1 and len(stage.lives) == 2


WAITS = """
trap 'status preempted; checkpoint 7; echo $SIGNAL > "$STAGE/told"; exit 1' "$SIGNAL"
status running; echo $$ > "$STAGE/ready"
for _ in {1..600}; do sleep 0.1; done
"""


@pytest.mark.parametrize(
    ("sent", "told"), [("TERM", "TERM"), ("USR1", "USR1"), ("HUP", "TERM")], ids=str
)
def test_a_signal_is_passed_on_and_ends_the_loop(tmp_path: Path, sent: str, told: str) -> None:
    stage = Stage(tmp_path, WAITS)
    process = stage.start("torchrun.sh", "2", str(stage.config), SIGNAL=told)
    stage.wait_for("ready")
    process.send_signal(getattr(signal, f"SIG{sent}"))
    status, _, err = stage.finish(process)
    assert status == 128 + getattr(signal, f"SIG{told}") and len(stage.lives) == 1
    assert stage.lines("told") == [told] and "preempted, saved as step_00000007" in err


@pytest.mark.slow
def test_a_second_signal_does_not_end_the_save(tmp_path: Path) -> None:
    saves = """
trap 'echo told >> "$STAGE/told"' TERM
status running; touch "$STAGE/ready"
until [ -e "$STAGE/told" ]; do sleep 0.1; done
sleep 1; status preempted; exit 1
"""
    stage = Stage(tmp_path, saves)
    process = stage.start("torchrun.sh", "2", str(stage.config))
    for name in ("ready", "told"):
        stage.wait_for(name)
        process.send_signal(signal.SIGTERM)
    assert stage.finish(process)[0] == 128 + signal.SIGTERM and stage.lines("told") == ["told"]


def test_a_signal_during_the_pause_ends_the_loop(tmp_path: Path) -> None:
    stage = Stage(tmp_path, CRASH)
    stage.program("sleep", f"touch {tmp_path}/paused; exec /bin/sleep 60")
    process = stage.start("torchrun.sh", "2", str(stage.config))
    stage.wait_for("paused")
    process.send_signal(signal.SIGTERM)
    assert stage.finish(process, timeout=20)[0] == 128 + signal.SIGTERM and len(stage.lives) == 1


def test_processes_of_a_killed_launcher_are_ended(tmp_path: Path) -> None:
    worker = (
        'setsid sleep 600 < /dev/null > /dev/null 2>&1 & echo $! > "$STAGE/worker"; kill -KILL $$'
    )
    stage = Stage(tmp_path, worker, "status done")
    bystander = subprocess.Popen(
        ["sleep", "600"], env=stage.environment(CLIPKIT_LAUNCH="another"), start_new_session=True
    )
    try:
        status, _, err = torchrun(stage)
        assert status == 0 and "ending 1 processes that were left behind" in err
        pid = int(stage.lines("worker")[0])
        deadline = time.monotonic() + 10
        while alive(pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not alive(pid) and bystander.poll() is None, "only its own"
    finally:
        os.killpg(bystander.pid, signal.SIGKILL)
        bystander.wait()


def test_machines_meet_under_the_life_before_whatever_it_still_writes(tmp_path: Path) -> None:
    """Two machines look at different times, and one may pause where the other does not."""
    begun = {"state": "running", "host": "node1", "pid": 7, "job_id": "j", "started": "2026-11-22"}
    names = []
    for moment, word in enumerate((begun, {**begun, "state": "failed", "step": 9, "time": "now"})):
        stage = Stage(tmp_path / str(moment), CRASH, "status done")
        stage.program("sleep", f"echo '{json.dumps(word)}' > {stage.run}/status.json")
        assert torchrun(stage, NODES="2", MASTER_ADDR="node1")[0] == 0
        assert [life.count("--rdzv-id=r-- ") for life in stage.lives] == [1, 0]
        names.append(stage.lives[1].partition("--rdzv-id=")[2].split()[0])
    assert names[0] == names[1] != "r--"


@pytest.mark.parametrize(
    ("state", "noted", "wanted"), [("done", 0, 0), ("preempted", 0, 143), ("failed", 5, 5)]
)
def test_how_it_ended_may_be_written_in_the_pause(
    tmp_path: Path, state: str, noted: int, wanted: int
) -> None:
    """Rank 0's machine ended later than this one: no second life."""
    stage = Stage(tmp_path, CRASH)
    last = json.dumps({"state": state, "exit_status": noted})
    stage.program("sleep", f"echo '{last}' > {stage.run}/status.json")
    assert torchrun(stage)[0] == wanted and len(stage.lives) == 1


def test_several_machines_meet(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "status done")
    status, _, err = torchrun(stage, NODES="3")
    assert status == 2 and "NODES=3 needs MASTER_ADDR" in err and not stage.lives
    assert torchrun(stage, NODES="3", MASTER_ADDR="node1")[0] == 0
    assert (
        "--nnodes=3 --rdzv-backend=c10d --rdzv-id=r-- --rdzv-endpoint=node1:29500" in stage.lives[0]
    )
    assert stage.lines("calls")[0].startswith("check 6 ")
