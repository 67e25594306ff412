"""A small study whose commands store results instead of running."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from clipkit.bench.study import execute
from tests.fixtures_results import records, store

# acc1 of four images, by row and seed
RIGHT = {
    ("plain", "0"): [1, 0, 0, 0],
    ("plain", "1"): [1, 1, 0, 0],
    ("tuned", "0"): [1, 1, 1, 0],
    ("tuned", "1"): [1, 0, 1, 1],
}
TAGS = {"tags": [["a"], ["a", "b"], ["b"], ["b"]]}
TREE: dict[str, Any] = {
    "title": "Tuned against plain",
    "data": "digits",
    "seeds": [0, 1],
    "setup": ["clipkit-data demo {out}/demo"],
    "rows": {
        "plain": ["clipkit train {here}/plain.yaml run.seed={seed}", "clipkit eval plain {seed}"],
        "tuned": [
            "clipkit train {here}/plain.yaml run.seed={seed}",
            "clipkit eval tuned {seed} --data '{data}/x-{00..12}.tar' {kind: x}",
        ],
    },
    "baseline": "plain",
    "metrics": [
        {"dataset": "digits", "kind": "zero_shot", "metric": "acc1", "label": "accuracy"},
        {"dataset": "digits", "kind": "zero_shot", "metric": "acc1", "tag": "b"},
    ],
    "results": "{out}/eval/{row}/{seed}",
}


@pytest.fixture
def study_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes TREE, changed, to tiny.yaml."""

    def write(**changes: Any) -> Path:
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump({**TREE, **changes}))
        (tmp_path / "plain.yaml").write_text("run: {name: plain}\n")
        return path

    return write


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What would have been run; "eval ROW SEED" stores its result, "eval fails" ends with 3."""
    found: list[list[str]] = []

    def run(argv: list[str], *, stdout: Any, **rest: Any) -> SimpleNamespace:
        if argv[0] != sys.executable:  # git, asked for the commit
            return subprocess_run(argv, stdout=stdout, **rest)
        found.append(argv[2:])
        if argv[3:5] == ["eval", "fails"]:
            stdout.write("reading\nclipkit: no such thing\n")
            return SimpleNamespace(returncode=3)
        if argv[3] == "eval":
            row, seed = argv[4:6]
            store(tmp_path / "out/eval" / row / seed, "run", records(RIGHT[row, seed], **TAGS))
        return SimpleNamespace(returncode=0)

    subprocess_run = subprocess.run
    monkeypatch.setattr(execute, "subprocess", SimpleNamespace(run=run, **_STREAMS))
    return found


_STREAMS = {"DEVNULL": subprocess.DEVNULL, "STDOUT": subprocess.STDOUT}
