"""JSON lines are JSON, the plot is a picture, a skipped row says why."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image
from rich.console import Console

from clipkit.bench.report import json_line, markdown, plot, table_of

ROWS = [
    {"impl": "naive", "batch": 8, "cpu_s": 1.23456789, "extra_mb": 2.0},
    {"impl": "tiled", "batch": 16, "cpu_s": 0.5, "extra_mb": 1.0},
    {"impl": "naive", "batch": 16, "cpu_s": None, "extra_mb": None, "skipped": "too large"},
]


def test_json_line() -> None:
    assert json.loads(json_line(ROWS[0]))["cpu_s"] == 1.235


def test_tables_name_the_reason() -> None:
    console = Console(record=True, width=120)
    console.print(table_of(ROWS, ["impl", "batch", "cpu_s"], "t"))
    assert "skipped: too large" in console.export_text()
    text = markdown(ROWS, ["impl", "batch", "cpu_s"])
    assert "| naive | 16 | - | skipped: too large |" in text


def test_plot(tmp_path: Path) -> None:
    plot(ROWS, tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as image:
        assert image.size[0] > 500
