"""The bench saves what it trains, in both ways, and tells what it cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clipkit.bench import checkpoint as bench
from tests.tiny_model import MODEL_CFG


@pytest.mark.parametrize("impl", bench.IMPLS)
def test_measures(tmp_path: Path, impl: str) -> None:
    task = {
        "arch": MODEL_CFG, "batch": 4, "device": "cpu", "impl": impl, "repeats": 2,
        "folder": str(tmp_path),
    }  # fmt: skip
    found = bench.measure(task)
    assert all(len(found[k]) == 2 and min(found[k]) > 0 for k in ("step_s", "blocked_s", "total_s"))
    assert found["bytes"] > 12 * found["parameters"] > 0
    assert list(tmp_path.iterdir()) == []


def test_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(task: dict[str, Any]) -> dict[str, Any]:
        times = {k: [1.0, 3.0, 2.0] for k in ("step_s", "total_s", "step_beside_s")}
        return {**times, "blocked_s": [0.5, 0.25, 1.0], "bytes": 2e6, "parameters": 7}

    monkeypatch.setattr(bench, "in_fresh_process", answer)
    rows = list(bench.rows({"threads": 1, "device": "cpu"}))
    assert [row["impl"] for row in rows] == ["background", "foreground"]
    assert rows[0]["blocked_share_of_step"] == 0.25 and rows[0]["blocked_s_max"] == 1.0
    assert rows[0]["mb"] == 2.0
