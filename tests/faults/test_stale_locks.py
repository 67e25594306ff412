"""Row 14: locks that dead processes left: a start says so, and goes on or ends at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipkit.engine.run_folder import claim
from tests.e2e.runs import finish, start, train
from tests.engine.inprocess import fit_in_pool
from tests.faults.conftest import Reference
from tests.faults.harness import events, history


def test_a_run_folder_s_old_lock(tmp_path: Path, reference: Reference, ranks) -> None:  # type: ignore[no-untyped-def]
    run = tmp_path / "r"
    run.mkdir()
    (run / ".lock").write_text("pid 1 on a machine that is gone")
    overrides = [f"run.dir={tmp_path}", "data.workers=0", "train.total_steps=2", "eval.tasks=[]"]
    assert ranks(2).run(fit_in_pool, str(reference.config), overrides) == ["done"] * 2
    assert len(history(run)) == 2


@pytest.mark.slow
def test_a_run_folder_in_use(tmp_path: Path, reference: Reference) -> None:
    lock = claim(tmp_path / "r")
    code, _, err = train(reference.config, f"run.dir={tmp_path}")
    lock.close()
    assert code == 2 and "another process is training there" in err and "Traceback" not in err
    assert not (tmp_path / "r" / "status.json").exists()  # it is the other's


@pytest.mark.slow
def test_a_lock_of_a_killed_compilation(tmp_path: Path, reference: Reference) -> None:
    lock = tmp_path / "extensions" / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    arguments = ["train", str(reference.config), f"run.dir={tmp_path}", "train.total_steps=2"]
    more = ["engine.strategy=deepspeed", "eval.tasks=[]"]
    process = start([*arguments, *more], TORCH_EXTENSIONS_DIR=str(tmp_path / "extensions"))
    code, _, err = finish(process)
    assert code == 0, err
    (event,) = events(tmp_path / "r", "compile_lock")
    assert str(lock) in event["text"] and str(lock) in err and lock.exists()
