"""A killed run goes on as if nothing had happened; another world size reads what this one saved."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.e2e.runs import curve, finish, kill_at, start, torchrun, train, write_run


@pytest.mark.parametrize("strategy", ["torch", pytest.param("deepspeed", marks=pytest.mark.slow)])
def test_killed_at_step_17_resumes_bit_for_bit(tmp_path: Path, strategy: str) -> None:
    config = write_run(
        tmp_path,
        engine={"strategy": strategy},
        checkpoint={"every": 5},
        addons=[{"kind": "ema", "decay": 0.9}],
    )
    status, _, err = train(config, "run.name=straight")
    assert status == 0, err
    killed = start(["train", str(config), "run.name=killed"])
    kill_at(killed, tmp_path / "runs" / "killed", 17)
    before = curve(tmp_path / "runs" / "killed")
    assert 17 <= len(before) < 20
    status, _, err = train(config, "run.name=killed", "run.resume=auto")
    assert status == 0, err
    assert "resumed from" in err and "step_00000015" in err
    assert curve(tmp_path / "runs" / "killed") == curve(tmp_path / "runs" / "straight")
    results = [
        json.loads((tmp_path / "runs" / n / "results.json").read_text())
        for n in ("straight", "killed")
    ]
    assert results[0] == results[1]


def test_one_process_resumes_what_two_saved(tmp_path: Path) -> None:
    config = write_run(
        tmp_path, engine={"strategy": "deepspeed", "zero_stage": 3}, checkpoint={"every": 10}
    )
    assert (
        torchrun(config, "train.total_steps=10", "optim.schedule=constant", "run.name=two")[0] == 0
    )
    assert train(config, "run.name=one", "optim.schedule=constant", "engine.zero_stage=1")[0] == 0
    status, _, err = train(
        config, "run.name=two", "run.resume=auto", "optim.schedule=constant", "engine.zero_stage=1"
    )
    assert status == 0, err
    resumed, straight = curve(tmp_path / "runs" / "two"), curve(tmp_path / "runs" / "one")
    assert [x[2] for x in resumed] == [x[2] for x in straight]
    assert [x[1] for x in resumed] == pytest.approx([x[1] for x in straight], rel=1e-3)


def test_sigterm_saves_and_stops(tmp_path: Path) -> None:
    config = write_run(tmp_path, train={"total_steps": 5000})
    process = start(["train", str(config)])
    folder = tmp_path / "runs" / "r"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (folder / "metrics.jsonl").exists():
        time.sleep(0.1)
    time.sleep(1)
    os.kill(process.pid, signal.SIGTERM)
    status, _, err = finish(process)
    assert status == 0, err
    steps = len(curve(folder))
    assert (folder / "checkpoints" / f"step_{steps:08d}" / "manifest.json").exists()
    assert "stopped by a signal" in err


def test_another_data_set_is_refused(tmp_path: Path) -> None:
    config = write_run(tmp_path, train={"total_steps": 2})
    assert train(config)[0] == 0
    (tmp_path / "data" / "train" / "002.tar").unlink()
    status, _, err = train(config, "run.resume=auto", "train.total_steps=4")
    assert status == 4
    assert "is not the data set of the checkpoint" in err.splitlines()[-1]
    assert "Traceback" not in err


def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path: Path) -> None:
    config = write_run(tmp_path, train={"total_steps": 6}, checkpoint={"every": 3})
    assert train(config)[0] == 0
    newest = tmp_path / "runs" / "r" / "checkpoints" / "step_00000006" / "rank_00000.safetensors"
    data = bytearray(newest.read_bytes())
    data[-10] ^= 1
    newest.write_bytes(data)
    status, _, err = train(config, "run.resume=auto")
    assert status == 0, err
    assert "sha256 differs" in err and "step_00000003" in err


def test_no_valid_checkpoint_is_no_fresh_start(tmp_path: Path) -> None:
    config = write_run(tmp_path, train={"total_steps": 2})
    assert train(config)[0] == 0
    (tmp_path / "runs" / "r" / "checkpoints" / "step_00000002" / "manifest.json").unlink()
    status, _, err = train(config, "run.resume=auto")
    assert status == 4
    assert "no checkpoint is valid" in err.splitlines()[-1] and "Traceback" not in err
