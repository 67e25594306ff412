"""The page and its lines."""

from __future__ import annotations

import json
from pathlib import Path

from clipkit.bench.study.definition import load_study
from clipkit.bench.study.numbers import Cell, Gap
from clipkit.bench.study.run import StudyRun
from clipkit.bench.study.table import markdown


def test_page_and_lines(study_file, ran, tmp_path) -> None:
    path = study_file(claim="Tuned is better.", notes="Digits are easy.")
    run = StudyRun(load_study(path), path, tmp_path / "out", tmp_path)
    run.execute(run.chains(None, None), 1, None)
    page = run.tabulate(tmp_path / "kept")
    assert (tmp_path / "kept/tiny.md").read_text() == page
    assert "Models trained from scratch on digits; no pretrained weights." in page
    assert "Tuned is better." in page and "Digits are easy." in page
    low, high = json.loads(_lines(tmp_path)[1])["gaps"]["plain"]["interval"]
    row = f"| tuned (2 seeds) | 0.750 | 0.750 | 0.750 | +0.375 [{low:+.3f}, {high:+.3f}], 2 of 2 |"
    assert "| row | mean | seed 0 | seed 1 | minus plain |" in page
    assert "Higher is better, 4 items." in page
    assert row in page
    assert "| plain (2 seeds) | 0.375 | 0.250 | 0.500 |  |" in page
    assert "clipkit train {here}/plain.yaml run.seed={seed}" in page
    assert f"`clipkit bench study {path}` runs all of it" in page
    assert "it does not cover seeds" in page
    line = json.loads(_lines(tmp_path)[1])
    assert (line["study"], line["row"], line["mean"]) == ("tiny", "tuned", 0.75)
    assert line["seeds"] == {"0": 0.75, "1": 0.75}
    assert line["gaps"]["plain"]["same_sign"] == 2
    assert line["commit"] and line["torch"] and line["machine"]


def _lines(tmp_path) -> list[str]:
    return (tmp_path / "kept/tiny.jsonl").read_text().splitlines()


def test_rows_of_three_seeds_are_not_marked_and_no_folder_of_ours_is_named(study_file) -> None:
    study = load_study(study_file(seeds=[0, 1, 2]))
    gap = Gap(0.1, None, "items", {0: 0.1, 1: 0.1})
    seeds = {0: 0.5, 1: 0.5, 2: 0.5}
    cells = [Cell("accuracy", "", "plain", "higher", 4, 0.5, seeds, {})]
    cells.append(Cell("accuracy", "", "tuned", "higher", 4, 0.6, seeds, {"plain": gap}))
    page = markdown(study, "clipkit bench study a/b.yaml", cells, {})
    assert "| plain | 0.500" in page and "(2 seeds)" not in page
    usual = StudyRun(study, Path("a/b.yaml"), Path("/somewhere/else"))
    assert usual.command == "clipkit bench study a/b.yaml"
