"""What the scripts read of a run: only what its own files say."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("run_state", ROOT / "launch" / "run_state.py")
assert SPEC and SPEC.loader
run_state = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(run_state)


def test_a_run_that_never_began(tmp_path: Path) -> None:
    assert run_state.state(tmp_path / "absent") == ["none", "", "- - -"]


@pytest.mark.parametrize("content", ["", "[]", "{", '{"status": "done"}', "7", "\0"])
def test_a_file_that_is_no_status(tmp_path: Path, content: str) -> None:
    (tmp_path / "status.json").write_text(content)
    state, status, mark = run_state.state(tmp_path)
    assert (state, status) == ("none", "") and mark.startswith("- ") and mark != "- - -"


def test_state_status_newest_checkpoint_and_a_digest_that_changes(tmp_path: Path) -> None:
    for step in ("step_00000010", "step_00000009", ".step_00000011.tmp-1"):
        (tmp_path / "checkpoints" / step).mkdir(parents=True)
    marks = []
    for moment in (1, 2):
        (tmp_path / "status.json").write_text(
            f'{{"state": "failed", "exit_status": 75, "time": {moment}}}'
        )
        state, status, mark = run_state.state(tmp_path)
        assert (state, status) == ("failed", "75") and mark.startswith("step_00000010 ")
        marks.append(mark)
    assert marks[0] != marks[1]


def test_a_life_is_told_from_the_next_and_not_from_itself(tmp_path: Path) -> None:
    found = []
    for started, step, state in ((1, 0, "running"), (1, 9, "failed"), (2, 9, "running")):
        values = {"host": "a", "pid": 7, "started": started, "step": step, "state": state}
        (tmp_path / "status.json").write_text(json.dumps(values))
        found.append(run_state.state(tmp_path)[2].split()[2])
    assert found[0] == found[1] != found[2] and "-" not in found


def test_the_place_follows_the_overrides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("data: {train: a.tar}\ntrain: {total_steps: 1}\n")
    assert run_state.main(["place", str(config), "run.dir=/a b/c", "run.name=x_3"]) == 0
    assert capsys.readouterr().out == "/a b/c/x_3\nx_3\n"
    assert run_state.main(["place", str(config), "run.nam=x"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
