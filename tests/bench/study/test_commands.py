"""Command lines: placeholders, what may be run, and when two are the same."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from clipkit.bench.study.commands import Places, row_chains, setup_chain
from clipkit.bench.study.definition import load_study
from clipkit.errors import ConfigError


def _chains(path: Path, out: str = "out", data: Path | None = Path("/data")):
    study = load_study(path)
    return row_chains(study, Places(path.parent / out, path.parent, data), study.rows, study.seeds)


def test_lines_become_words_without_a_shell(study_file, tmp_path) -> None:
    chains = _chains(study_file())
    assert [c.name for c in chains] == [
        f"row {r} seed {s}" for s in "01" for r in ("plain", "tuned")
    ]
    last = chains[3].commands[1]
    words = ["eval", "tuned", "1", "--data", "/data/x-{00..12}.tar", "{kind:", "x}"]
    assert last.argv == [sys.executable, "-m", "clipkit", *words]
    assert chains[0].commands[0].words[2] == f"{tmp_path}/plain.yaml"


@pytest.mark.parametrize("line", ["rm -rf {out}", "python -c 1", "sh", "", "clipkit 'x"])
def test_other_programs_are_refused(study_file, line) -> None:
    with pytest.raises(ConfigError, match="commands only|cannot be read"):
        _chains(study_file(rows={"plain": [line]}))


def test_unknown_placeholders_are_refused(study_file) -> None:
    with pytest.raises(ConfigError, match=r"\{sed\}; did you mean 'seed'"):
        _chains(study_file(rows={"plain": ["clipkit x {sed}"]}))
    with pytest.raises(ConfigError, match="give --data, or CLIPKIT_DATA"):
        _chains(study_file(), data=None)
    study = load_study(study_file(setup=["clipkit x {seed}"]))
    with pytest.raises(ConfigError, match=r"placeholder \{seed\}"):
        setup_chain(study, Places(Path("out"), Path(".")))


def test_a_mark_depends_on_line_and_config_not_on_the_place(study_file, tmp_path) -> None:
    path = study_file()
    before = [c.mark for chain in _chains(path) for c in chain.commands]
    assert len(set(before)) == 6  # the training is shared by the two rows
    assert before == [c.mark for chain in _chains(path, out="other") for c in chain.commands]
    (tmp_path / "plain.yaml").write_text("run: {name: changed}\n")
    after = [c.mark for chain in _chains(path) for c in chain.commands]
    assert [a == b for a, b in zip(before, after)] == [False, True] * 4


def test_cases_have_values_of_their_own(study_file) -> None:
    path = study_file(
        cases={"x": {"classes": "1"}, "y": {"classes": "2"}},
        setup=["clipkit-data demo {out}/demo", "clipkit-data holdout {case} {classes}"],
        rows={"plain": ["clipkit a {case} {classes} {row} {seed}"]},
    )
    study = load_study(path)
    places = Places(path.parent, path.parent)
    setup = [c.words[1:] for c in setup_chain(study, places).commands]
    assert [words[1:] for words in setup[1:]] == [("x", "1"), ("y", "2")]
    chains = row_chains(study, places, study.rows, [7])
    assert [c.commands[0].shown for c in chains] == [
        "clipkit a x 1 plain 7",
        "clipkit a y 2 plain 7",
    ]
    assert chains[0].name == "row plain x seed 7"
