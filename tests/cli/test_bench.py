"""`clipkit bench`: files, JSON on stdout, one line for a mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from clipkit.bench import loss as bench
from clipkit.cli.bench import app
from clipkit.errors import ConfigError


def test_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "in_fresh_process", lambda task: bench.TASKS[task["what"]](task))
    arguments = ["loss", "--sizes", "32,64", "--dim", "16", "--json", "--threads", "1"]
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path)], catch_exceptions=False)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {(r["impl"], r["batch"]) for r in rows} >= {("tiled", 32), ("open_clip", 64)}
    assert all(r["machine"] and r["torch"] for r in rows)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["loss.jsonl", "loss.md", "loss.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["loss", "--sizes", "x"], "--sizes 'x'"),
        (["loss", "--sizes", "0"], "--sizes '0'"),
        (["loss", "--dtype", "fp8"], "--dtype 'fp8'"),
        (["step", "--device", "tpu"], "--device 'tpu'"),
    ],
)
def test_mistakes(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
