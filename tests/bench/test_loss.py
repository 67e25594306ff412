"""The compared implementations compute the same thing; rows say what was measured or why not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from clipkit.bench import loss as bench

TASK = {"threads": 1, "device": "cpu", "dim": 16, "dtype": "fp32", "scale": 10.0}


@pytest.mark.parametrize("impl", bench.IMPLEMENTATIONS)
def test_same_loss_and_gradients(impl: str) -> None:
    found = {}
    for name in ("naive", impl):
        torch.manual_seed(0)
        rows = [F.normalize(torch.randn(40, 16), dim=1).requires_grad_() for _ in range(2)]
        scale = torch.tensor(10.0, requires_grad=True)
        bench.IMPLEMENTATIONS[name](rows[0], rows[1], scale, False).backward()
        found[name] = [*(r.grad for r in rows), scale.grad]
    for a, b in zip(found["naive"], found[impl]):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_peer_that_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "free_mb", lambda: 1000.0)
    assert bench.why_not("naive", 4096, 0.0, TASK) is None
    assert bench.why_not("naive", 65536, 0.0, TASK) == "needs about 69 GB, 1 GB are free"
    assert "400 CPU seconds" in str(bench.why_not("checkpointed", 65536, 400.0, TASK))
    assert bench.why_not("tiled", 65536, 4000.0, TASK) is None


def test_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(task):  # type: ignore[no-untyped-def]
        if task["what"] == "loss_memory":
            return {"extra_mb": 5.0, "cpu_s": 1.0, "wall_s": 1.0}
        factor = {"naive": 2.0, "tiled": 1.0}
        return {i: [(factor.get(i, 4.0), 3.0)] * task["repeats"] for i in task["impls"]}

    monkeypatch.setattr(bench, "in_fresh_process", answer)
    monkeypatch.setattr(bench, "free_mb", lambda: 24000.0)
    rows = {(r["impl"], r["batch"]): r for r in bench.rows([1024, 65536], TASK)}
    assert len(rows) == 8
    assert rows["tiled", 1024]["cpu_ratio_to_naive"] == 0.5
    assert rows["naive", 65536]["skipped"] and rows["naive", 65536]["cpu_s"] is None
    assert "CPU seconds" in rows["checkpointed", 65536]["skipped"]
    assert rows["tiled", 65536]["cpu_s"] == 1.0, "the process measured for memory ran it once"
    assert {"impl", "batch", "dim", "cpu_s", "wall_s", "extra_mb"} <= rows["tiled", 1024].keys()
