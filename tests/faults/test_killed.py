"""Row 1: a rank is killed in the middle of a step."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.faults.conftest import Reference
from tests.faults.harness import assert_exact_coverage, assert_same_weights, history, life


@pytest.mark.slow
def test_a_killed_rank_ends_the_run_and_the_next_life_joins_it(
    tmp_path: Path, reference: Reference
) -> None:
    run, place = tmp_path / "r", f"run.dir={tmp_path}"
    first = life(reference.config, place, fault="kill@1:17")
    assert first.status != 0
    assert_nothing_runs(tmp_path)
    assert history(run) == history(reference.run)[:17]
    second = life(reference.config, place, "run.resume=auto")
    assert second.status == 0, second.err
    assert history(run) == history(reference.run)
    assert_exact_coverage(run)
    assert_same_weights(run, reference.run)


def assert_nothing_runs(folder: Path) -> None:
    """A loader's workers look every few seconds whether their process is still there."""
    deadline = time.monotonic() + 30
    while _processes_of(folder) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not _processes_of(folder), "a process was left behind"


def _processes_of(folder: Path) -> list[str]:
    """Command lines of running processes that name the folder."""
    lines = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.name != str(os.getpid()):
            try:
                text = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if str(folder) in text:
                lines.append(text.replace("\0", " "))
    return lines
