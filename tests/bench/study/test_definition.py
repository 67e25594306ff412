"""A study's file: what it may say, and one line for what it may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipkit.bench.study.definition import load_study
from clipkit.errors import ConfigError

_METRIC = {"dataset": "d", "kind": "k", "metric": "m"}


def test_anchors_and_single_values(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(
        ".train: &train [clipkit a, clipkit b]\n"
        "title: t\ndata: d\nbaseline: one\nresults: r\n"
        "rows: {one: *train, two: [*train, clipkit c]}\n"
        "cases: {x: {classes: 1}, y: {classes: '2,3'}}\n"
        "metrics: [{dataset: d, kind: k, metric: m, tag: b, where: {class: [p, q]}}]\n"
    )
    study = load_study(path)
    assert study.rows["two"] == ("clipkit a", "clipkit b", "clipkit c")
    assert study.seeds == (0, 1, 2, 3, 4)
    assert study.baseline == ("one",)
    assert study.cases == {"x": {"classes": "1"}, "y": {"classes": "2,3"}}
    assert study.metrics[0].filters == {"class": ("p", "q"), "tags": ("b",)}
    assert study.metrics[0].title == "d k m class=p|q tags=b"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"baseline": "plian"}, "baseline: 'plian' is no row.*'plain'"),
        ({"row": {}}, "row: unknown key.*'rows'"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [1, 1]}, "seeds"),
        ({"metrics": []}, "metrics"),
        ({"metrics": [_METRIC, _METRIC]}, "two are called 'd k m'"),
        ({"metrics": [{**_METRIC, "beter": "higher"}]}, "metrics.0.beter: unknown key.*'better'"),
        ({"rows": {"a/b": []}}, "rows"),
        ({"rows": "clipkit"}, "rows"),
        *[
            ({"cases": {"x": {name: "1"}}}, f"cases.x.{name}: has a meaning of its own")
            for name in ("data", "out", "here", "row", "seed", "case")
        ],
    ],
)
def test_mistakes(study_file, change, message) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_study(study_file(**change))
    assert "\n" not in str(caught.value)


def test_no_mapping(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("- a\n")
    with pytest.raises(ConfigError, match=r"x\.yaml: a study is a mapping"):
        load_study(path)


def test_a_list_that_holds_itself(study_file) -> None:
    path = study_file()
    path.write_text(path.read_text().replace("setup:\n", "setup: &a\n- *a\n"))
    with pytest.raises(ConfigError, match=r"tiny\.yaml: unfolds to more than") as caught:
        load_study(path)
    assert "\n" not in str(caught.value)
