"""A worker answers with a result or one line, whatever the function does."""

from __future__ import annotations

from pathlib import Path

from data_tools.engines.task import Task, run_task

MODULE = "tests.data_tools.shard_functions"


def task(out: Path, function: str = "misbehave", module: str = MODULE, how: str = "") -> Task:
    params = {"how": {"a": how}}
    return Task(module, function, "a", str(out), params, str(out / "m.json"), "print")


def test_a_result_is_marked_done(tmp_path: Path) -> None:
    outcome = run_task(task(tmp_path))
    assert outcome.result and not outcome.error and (tmp_path / "m.json").exists()


def test_an_older_marker_goes_before_the_work_begins(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text("{}")
    outcome = run_task(task(tmp_path, how="data"))
    assert outcome.final and outcome.error == "a: is broken"
    assert not (tmp_path / "m.json").exists()


def test_errors_are_one_line(tmp_path: Path) -> None:
    outcome = run_task(task(tmp_path, how="quit"))
    assert outcome.error == "SystemExit: 3" and not outcome.final
    assert "no_such" in run_task(task(tmp_path, function="no_such")).error
    assert "ModuleNotFoundError" in run_task(task(tmp_path, module="no.such")).error
