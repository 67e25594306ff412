"""A process is measured from outside its own libraries' start."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from clipkit.bench import measure
from clipkit.bench.measure import by_turns, extra_mb, in_fresh_process, timed
from clipkit.errors import ClipkitError


def test_extra_memory_is_the_peak_over_the_start() -> None:
    def peak_of_400_mb() -> None:
        torch.ones(100_000_000)  # freed again

    assert 300 < extra_mb(peak_of_400_mb) < 500  # others' memory may come back meanwhile
    assert extra_mb(lambda: None) < 5


def test_time_of_all_threads() -> None:
    usage = timed(lambda: sum(range(3_000_000)))
    assert usage.cpu_s > 0 and usage.wall_s > 0


def test_a_fresh_process_answers() -> None:
    task = {"what": "loss_memory", "impl": "tiled", "batch": 64, "threads": 1, "device": "cpu"}
    found = in_fresh_process({**task, "dim": 8, "dtype": "fp32", "scale": 10.0})
    assert found.keys() == {"extra_mb", "cpu_s", "wall_s"}


def test_a_failing_process_is_one_error() -> None:
    task = {"what": "loss_memory", "impl": "nothing", "threads": 1, "device": "cpu"}
    with pytest.raises(ClipkitError, match="bench loss_memory nothing"):
        in_fresh_process(task)


def test_calls_take_turns() -> None:
    seen: list[str] = []
    times = by_turns({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, 3)
    assert seen == ["a", "b"] * 3
    assert {n: len(t) for n, t in times.items()} == {"a": 3, "b": 3}


def test_the_commit_tells_of_changes_to_code_and_configs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> None:
        who = ["-c", "user.name=x", "-c", "user.email=x"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    monkeypatch.setattr(measure, "_ROOT", tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "README.md").write_text("")
    (tmp_path / "configs" / "a.yaml").write_text("a")
    git("init")
    git("add", ".")
    git("commit", "-m", "x")
    plain = measure.machine(1, "cpu")["commit"]
    assert len(plain) == 12
    (tmp_path / "README.md").write_text("changed")
    assert measure.machine(1, "cpu")["commit"] == plain
    (tmp_path / "configs" / "new.yaml").write_text("b")
    assert measure.machine(1, "cpu")["commit"] == f"{plain}+changes"
    (tmp_path / "configs" / "new.yaml").unlink()
    (tmp_path / "configs" / "a.yaml").write_text("changed")
    assert measure.machine(1, "cpu")["commit"] == f"{plain}+changes"
