"""The batch script, with stand-ins for SLURM's commands: what srun starts, and what is requeued."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from tests.launch.fakes import ROOT, Stage
from tests.launch.test_relaunch import CRASH, WAITS

SAVED = "checkpoint 7; status preempted; exit 1"


def sbatch(stage: Stage, *overrides: str, **env: str) -> tuple[int, str, str]:
    return stage.play("slurm.sbatch", str(stage.config), *overrides, **env)


def requeued(stage: Stage) -> list[str]:
    return [line for line in stage.lines("scontrol") if not line.startswith("show ")]


def test_the_check_then_one_task_a_gpu(tmp_path: Path) -> None:
    stage = Stage(tmp_path, 'test -d "$TMPDIR" && status done')
    assert sbatch(stage, "optim.lr=1e-4")[0] == 0
    arguments = f"-m clipkit train {stage.config} optim.lr=1e-4 run.resume=auto"
    assert stage.lives == [arguments]
    assert stage.lines("calls")[0].startswith("check 2 ")
    first, cleaning = stage.lines("srun")
    assert first.startswith("srun --kill-on-bad-exit=1 --wait=0 --export=ALL bash -c mkdir")
    assert cleaning == 'srun --ntasks=2 --ntasks-per-node=1 --export=ALL bash -c rm -rf "$TMPDIR"'
    own = f"{tmp_path}/clipkit_123_0"
    assert stage.lines("place") == [f"node7 20123 {own} {own}/torch_extensions {own}/triton"]
    assert requeued(stage) == [] and not Path(own).exists()


def test_torchrun_on_every_node(tmp_path: Path) -> None:
    stage = Stage(tmp_path, CRASH, "status done")
    assert sbatch(stage, LAUNCHER="torchrun", NPROC="8")[0] == 0
    first, second = stage.lives
    assert "--nnodes=2 --nproc_per_node=8 --rdzv-backend=c10d --rdzv-id=123-0" in first
    assert "--rdzv-endpoint=node7:20123 --signals-to-handle=SIGTERM,SIGINT,SIGUSR1" in first
    assert "--rdzv-id=123-1" in second and "node7:20124" in second
    assert all("--ntasks=2 --ntasks-per-node=1" in line for line in stage.lines("srun"))
    assert stage.lines("calls")[0].startswith("check 16 ")


def test_preempted_is_requeued_once_whatever_the_exit_status(tmp_path: Path) -> None:
    for number, status in enumerate(("0", "1", "138")):
        (tmp_path / status).mkdir()
        stage = Stage(tmp_path / status, SAVED.replace("exit 1", f"exit {status}"))
        assert sbatch(stage)[0] == 0
        assert requeued(stage) == ["requeue 123"] and len(stage.lives) == 1, number


def test_a_controller_that_is_away_is_asked_again(tmp_path: Path) -> None:
    stage = Stage(tmp_path, SAVED)
    stage.program("sleep", "exit 0")
    answers = (stage.bin / "scontrol").read_text().removeprefix("#!/bin/bash\n")
    stage.program("scontrol", answers + f"if [ -e {tmp_path}/asked ]; then exit; fi\n"
                  f'if [ "$1" = requeue ]; then touch {tmp_path}/asked; exit 1; fi')  # fmt: skip
    assert sbatch(stage)[0] == 0 and requeued(stage) == ["requeue 123"] * 2
    assert not (tmp_path / "clipkit_123_0").exists()


def test_one_task_with_its_cores(tmp_path: Path) -> None:
    stage = Stage(tmp_path, 'echo "$SRUN_CPUS_PER_TASK" > "$STAGE/cores"; status done')
    script = stage.environment(SLURM_JOB_NUM_NODES="1", SLURM_CPUS_PER_TASK="12")
    del script["SLURM_NTASKS"]  # sbatch sets it only where it was asked for
    command = ["bash", str(ROOT / "launch" / "slurm.sbatch"), str(stage.config)]
    subprocess.run(command, cwd=tmp_path, env=script, check=True, timeout=60)
    assert stage.lines("cores") == ["12"] and len(stage.lines("srun")) == 1
    assert stage.lines("calls")[0].startswith("check 1 ")


def test_nothing_else_is_requeued(tmp_path: Path) -> None:
    for name, life, status in (
        ("done", "status done", 0),
        ("mistake", "status failed 3; exit 3", 3),
        ("crash", CRASH, 137),
    ):
        (tmp_path / name).mkdir()
        stage = Stage(tmp_path / name, life)
        assert sbatch(stage, RELAUNCHES="1")[0] == status
        assert requeued(stage) == [] and len(stage.lives) == (2 if name == "crash" else 1)


def test_what_was_preempted_before_and_failed_now_is_not_requeued(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "exit 4")
    stage.run.mkdir(parents=True)
    (stage.run / "status.json").write_text('{"state": "preempted"}')
    assert sbatch(stage)[0] == 4 and requeued(stage) == []


IMPORTS = 'touch "$STAGE/ready"; exec sleep 60'  # killed by the signal: no handler yet


SRUN = """while [ "$1" != bash ]; do shift; done
trap 'kill -USR1 $!' USR1
trap 'kill -KILL $!; exit 1' TERM
"$@" &
wait $!
wait $!"""  # as SLURM's: it passes USR1 on to its tasks, and kills them on SIGTERM


@pytest.mark.parametrize(
    ("name", "life", "expected"),
    [
        ("USR1", WAITS, ["requeue 123"]),
        ("USR1", IMPORTS, ["requeue 123"]),
        ("USR1", WAITS.replace("preempted", "failed 1"), ["requeue 123"]),
        ("USR1", WAITS.replace("preempted", "failed 3"), []),
        ("USR1", WAITS.replace("preempted", "done"), []),
        ("TERM", WAITS, []),
    ],
    ids=["saved", "starting", "a crash", "a mistake", "done", "cancelled"],
)
def test_a_signal_to_the_script(tmp_path: Path, name: str, life: str, expected: list[str]) -> None:
    """USR1 comes before the time limit; TERM when the job is cancelled, or SLURM requeues it."""
    stage = Stage(tmp_path, life)
    stage.program("srun", SRUN)
    process = stage.start("slurm.sbatch", str(stage.config), SIGNAL="USR1")
    stage.wait_for("ready")
    process.send_signal(getattr(signal, f"SIG{name}"))
    status, _, _ = stage.finish(process)
    assert requeued(stage) == expected and len(stage.lives) == 1
    if life is not IMPORTS:
        assert stage.lines("told") == ["USR1"]
    wanted = {"failed 3": 3, "preempted": 128 + signal.SIGTERM}
    assert status == (0 if expected else next((v for k, v in wanted.items() if k in life), 0))


@pytest.mark.slow
def test_a_life_that_does_not_end_in_time_is_requeued_all_the_same(tmp_path: Path) -> None:
    deaf = """trap '' USR1; status running; touch "$STAGE/ready"; exec sleep 3"""
    stage = Stage(tmp_path, deaf)
    stage.program("srun", SRUN)
    script = (ROOT / "launch" / "slurm.sbatch").read_text()
    assert "PATIENCE=100" in script
    (tmp_path / "brief.sbatch").write_text(script.replace("PATIENCE=100", "PATIENCE=1"))
    process = stage.start(str(tmp_path / "brief.sbatch"), str(stage.config))
    stage.wait_for("ready")
    process.send_signal(signal.SIGUSR1)
    assert stage.finish(process)[0] == 0 and requeued(stage) == ["requeue 123"]


def test_tasks_of_an_array_have_names_folders_and_numbers_of_their_own(tmp_path: Path) -> None:
    stage = Stage(tmp_path, 'RUN="${RUN}_4"; ' + SAVED)
    array = {"SLURM_ARRAY_JOB_ID": "120", "SLURM_ARRAY_TASK_ID": "4", "SLURM_RESTART_COUNT": "2"}
    assert sbatch(stage, "run.seed=%a", **array)[0] == 0
    (life,) = stage.lives
    assert life.endswith("run.seed=4 run.name=r_4 run.resume=auto")
    assert requeued(stage) == ["requeue 120_4"], "the array's own number would requeue all tasks"
    assert stage.lines("place")[0].split()[2] == f"{tmp_path}/clipkit_123_2"


def test_submitted_from_elsewhere(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "status done")
    status, _, err = sbatch(stage, CLIPKIT_ROOT="/absent")
    assert status == 2 and "CLIPKIT_ROOT" in err and stage.lives == []
