"""A killed run goes on as if nothing had happened; another world size reads what this one saved."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.e2e.runs import curve, finish, start, train, write_run
from tests.engine.inprocess import fit_in_pool


@pytest.mark.parametrize("strategy", ["torch", pytest.param("deepspeed", marks=pytest.mark.slow)])
def test_killed_at_step_17_resumes_bit_for_bit(tmp_path: Path, strategy: str, ranks) -> None:  # type: ignore[no-untyped-def]
    addons = [{"kind": "ema", "decay": 0.9}, {"kind": "tests.e2e.dies"}]
    config = write_run(
        tmp_path,
        engine={"strategy": strategy},
        checkpoint={"every": 5},
        addons=addons,
        extensions=["tests"],
    )
    ranks(1).run(fit_in_pool, str(config), ["run.name=straight", "data.workers=0"])
    straight, killed = tmp_path / "runs" / "straight", tmp_path / "runs" / "killed"
    status, _, _ = train(config, "run.name=killed", DIE_AFTER_STEP="17")
    assert status == -signal.SIGKILL
    assert curve(killed) == curve(straight)[:16]
    status, _, err = train(config, "run.name=killed", "run.resume=auto")
    assert status == 0, err
    assert "resumed from" in err and "step_00000015" in err
    assert curve(killed) == curve(straight)
    results = [json.loads((folder / "results.json").read_text()) for folder in (straight, killed)]
    assert results[0] == results[1]


def test_one_process_resumes_what_two_saved(tmp_path: Path, ranks) -> None:  # type: ignore[no-untyped-def]
    config = str(write_run(tmp_path, engine={"strategy": "deepspeed"}, data={"workers": 0}))
    constant = "optim.schedule=constant"
    two = ["run.name=two", constant, "train.total_steps=10", "engine.zero_stage=3"]
    ranks(2).run(fit_in_pool, config, two)
    ranks(1).run(fit_in_pool, config, ["run.name=two", constant, "run.resume=auto"])
    ranks(1).run(fit_in_pool, config, ["run.name=one", constant])
    resumed, straight = (curve(tmp_path / "runs" / name) for name in ("two", "one"))
    assert [x[2] for x in resumed] == [x[2] for x in straight]
    assert [x[1] for x in resumed] == pytest.approx([x[1] for x in straight], rel=1e-3)


@pytest.mark.slow  # tests/faults/test_preempted.py has the brief ones
def test_sigterm_saves_and_stops(tmp_path: Path) -> None:
    config = write_run(tmp_path, train={"total_steps": 5000}, data={"workers": 2})
    process = start(["train", str(config)])
    folder = tmp_path / "runs" / "r"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (folder / "metrics.jsonl").exists():
        time.sleep(0.1)
    time.sleep(1)
    os.killpg(process.pid, signal.SIGTERM)  # as scancel does: the loader's workers get it too
    status, _, err = finish(process)
    assert status == 0, err
    steps = len(curve(folder))
    assert (folder / "checkpoints" / f"step_{steps:08d}" / "manifest.json").exists()
    assert "stopped by a signal" in err


@pytest.mark.slow
def test_another_data_set_is_refused(tmp_path: Path) -> None:
    config = write_run(tmp_path, train={"total_steps": 2})
    assert train(config)[0] == 0
    before = (tmp_path / "runs" / "r" / "metrics.jsonl").read_text()
    (tmp_path / "data" / "train" / "002.tar").unlink()
    status, _, err = train(config, "run.resume=auto", "train.total_steps=4")
    assert status == 4
    assert "is not the data set of the checkpoint" in err.splitlines()[-1]
    assert (tmp_path / "runs" / "r" / "metrics.jsonl").read_text() == before
    assert "Traceback" not in err


@pytest.mark.slow
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


@pytest.mark.slow
def test_no_valid_checkpoint_is_no_fresh_start(tmp_path: Path) -> None:
    config = write_run(tmp_path, train={"total_steps": 2})
    assert train(config)[0] == 0
    (tmp_path / "runs" / "r" / "checkpoints" / "step_00000002" / "manifest.json").unlink()
    status, _, err = train(config, "run.resume=auto")
    assert status == 4
    assert "no checkpoint is valid" in err.splitlines()[-1] and "Traceback" not in err
