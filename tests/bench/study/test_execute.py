"""Running: once each, again when something before has changed, on past a failure."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipkit.bench.study.definition import load_study
from clipkit.bench.study.execute import StudyFailed
from clipkit.bench.study.run import StudyRun


def _run(path: Path, rows=None, seeds=None, jobs: int = 1) -> StudyRun:
    run = StudyRun(load_study(path), path, path.parent / "out", path.parent)
    run.execute(run.chains(rows, seeds), jobs, None)
    return run


@pytest.mark.parametrize("jobs", [1, 3])
def test_each_command_runs_once(study_file, ran, jobs) -> None:
    path = study_file()
    _run(path, jobs=jobs)
    assert ran[0][:2] == ["data_tools", "demo"]
    assert len(ran) == 1 + 2 + 4  # the two rows share their training
    assert len({tuple(words) for words in ran}) == 7
    _run(path, jobs=jobs)
    assert len(ran) == 7


def test_rows_and_seeds_can_be_named(study_file, ran) -> None:
    path = study_file()
    _run(path, rows=["tuned"], seeds=["1"])
    assert [words[1:3] for words in ran[1:]] == [
        ["train", f"{path.parent}/plain.yaml"],
        ["eval", "tuned"],
    ]
    _run(path)
    assert len(ran) == 7


def test_what_follows_a_changed_command_runs_again(study_file, ran, tmp_path) -> None:
    path = study_file()
    _run(path)
    (tmp_path / "plain.yaml").write_text("run: {name: changed}\n")
    _run(path)
    assert sorted(w[1] for w in ran[7:]) == ["eval"] * 4 + ["train"] * 2


def test_rows_may_share_commands_in_any_order(study_file, ran) -> None:
    rows = {
        "plain": ["clipkit a {seed}", "clipkit b {seed}", "clipkit eval plain {seed}"],
        "tuned": ["clipkit a {seed}", "clipkit c {seed}", "clipkit a {seed}", "clipkit b {seed}"],
    }
    path = study_file(rows=rows)
    for _ in range(2):
        _run(path)
        assert len(ran) == 1 + 2 * 4


def test_an_edited_command_and_what_was_run_after_it(study_file, ran) -> None:
    first = ["clipkit a {seed}", "clipkit b {seed}", "clipkit c {seed}"]
    path = study_file(rows={"plain": first}, seeds=[0])
    _run(path)
    study_file(rows={"plain": [first[0], "clipkit b {seed} x", first[2]]}, seeds=[0])
    _run(path)
    assert [w[1] for w in ran] == ["demo", *"abc", *"bc"]
    study_file(rows={"plain": first}, seeds=[0])  # back: what it wrote then is replaced by now
    _run(path)
    assert [w[1] for w in ran][6:] == ["b", "c"]


def test_what_follows_a_command_run_again_runs_again(study_file, ran, tmp_path) -> None:
    path = study_file(rows={"plain": ["clipkit a", "clipkit b"]}, seeds=[0])
    _run(path)
    for marker in (tmp_path / "out/.done").iterdir():
        if "clipkit a" in marker.read_text():
            marker.unlink()
    _run(path)
    assert [w[1] for w in ran] == ["demo", "a", "b", "a", "b"]


def test_a_failure_ends_its_chain_alone(study_file, ran, capfd) -> None:
    rows = {
        "plain": ["clipkit train {seed}", "clipkit eval fails {seed}", "clipkit eval plain {seed}"],
        "tuned": ["clipkit train {seed}", "clipkit eval tuned {seed}"],
    }
    with pytest.raises(StudyFailed, match="2 chains failed; first, row plain seed 0: .* with 3"):
        _run(study_file(rows=rows))
    assert [w[1:3] for w in ran].count(["eval", "plain"]) == 0
    assert [w[1:3] for w in ran].count(["eval", "tuned"]) == 2
    assert "clipkit: no such thing" in capfd.readouterr().err
    before = len(ran)
    with pytest.raises(StudyFailed):  # what failed is tried again, what is done is not
        _run(study_file(rows=rows))
    assert [w[1:3] for w in ran[before:]] == [["eval", "fails"]] * 2


def test_a_failed_setup_ends_all(study_file, ran) -> None:
    with pytest.raises(StudyFailed, match="setup"):
        _run(study_file(setup=["clipkit eval fails"]))
    assert len(ran) == 1


def test_a_shared_failure_is_tried_once(study_file, ran) -> None:
    rows = {r: ["clipkit eval fails", f"clipkit eval {r} {{seed}}"] for r in ("plain", "tuned")}
    with pytest.raises(StudyFailed, match="4 chains failed"):
        _run(study_file(rows=rows))
    assert len(ran) == 2
