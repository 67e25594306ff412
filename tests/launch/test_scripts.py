"""The scripts: clean under shellcheck, usable from anywhere, with spaces in the path."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.runs import curve, write_run

ROOT = Path(__file__).parents[2]
SCRIPTS = [*(ROOT / "launch").glob("*.[!p]*"), ROOT / ".ci" / "run"]
ENVIRONMENT = {
    **{k: v for k, v in os.environ.items() if not k.startswith("SLURM_")},
    "OMP_NUM_THREADS": "1",
    "DS_ACCELERATOR": "cpu",
    "HF_HUB_OFFLINE": "1",
}


def shell(*command: str, cwd: Path, timeout: float = 300, **env: str) -> tuple[int, str, str]:
    """Run and return (status, stdout, stderr)."""
    run = subprocess.run(
        command,
        cwd=cwd,
        env={**ENVIRONMENT, **env},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    return run.returncode, run.stdout, run.stderr


def test_shellcheck() -> None:
    checker = Path(sys.executable).parent / "shellcheck"
    status, out, _ = shell(str(checker), "-x", *map(str, SCRIPTS), cwd=ROOT)
    assert status == 0, out


def stamp_text(sums: str, root: Path) -> str:
    """What launch/environment.sh writes after an installation without extras."""
    return " ".join(sums.splitlines()) + f" {root}\n\n"


def installed_copy(folder: Path) -> Path:
    """The project below a path with spaces, with this environment marked as installed there."""
    root = folder / "a copy with spaces"
    shutil.copytree(
        ROOT, root, ignore=shutil.ignore_patterns(".git", ".venv", "runs*", "demo_data", ".*_cache")
    )
    venv = folder / "environment"
    (venv / "bin").mkdir(parents=True)
    python = venv / "bin" / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="$(pwd)" exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    sums = subprocess.run(
        ["cksum", "setup.cfg", "pyproject.toml"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    (venv / ".clipkit-installed").write_text(stamp_text(sums.stdout, root))
    return root


@pytest.mark.slow
def test_quickstart_runs_twice_from_anywhere(tmp_path: Path) -> None:
    root = installed_copy(tmp_path)
    command = [
        "bash",
        str(root / "launch" / "quickstart.sh"),
        "train.total_steps=20",
        "checkpoint.every=0",
    ]
    for again in (False, True):
        status, out, err = shell(*command, cwd=tmp_path, CLIPKIT_VENV=str(tmp_path / "environment"))
        assert status == 0, out + err
        assert "installing" not in out and "quickstart: " in out
        assert ("up to date" in out + err) == again
        results = json.loads((root / "runs" / "quickstart" / "results.json").read_text())
        assert {"digits", "shapes", "shapes_unseen"} == set(results)
        assert 0 <= results["digits"]["acc1"] <= 1
    assert (root / "runs" / "quickstart.previous" / "results.json").exists()


@pytest.mark.slow
def test_torchrun_script_checks_first(tmp_path: Path) -> None:
    root = installed_copy(tmp_path)
    script, config = str(root / "launch" / "torchrun.sh"), str(write_run(tmp_path))
    environment = {"CLIPKIT_VENV": str(tmp_path / "environment"), "PYTHONPATH": str(root)}
    command = ["bash", script, "2", config]
    status, _, err = shell(*command, "train.global_batch_size=15", cwd=tmp_path, **environment)
    assert status == 2 and len(err.splitlines()) == 1
    assert "not divisible by the world size 2" in err
    status, _, err = shell(*command, cwd=tmp_path, **environment)
    assert status == 0, err
    assert len(curve(tmp_path / "runs" / "r")) == 20
