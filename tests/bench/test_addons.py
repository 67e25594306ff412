"""The compared steps train with what each add-on reads."""

from __future__ import annotations

import dataclasses

import pytest

from clipkit.bench import addons as bench

SMALL = dataclasses.replace(bench.TOWERS, batch=8, image=(64, 1), text=(64, 1), embed_dim=32)


@pytest.mark.parametrize("impl", SMALL.impls)
def test_runs(impl: str) -> None:
    call, held = bench.build(SMALL, impl, "cpu")
    result = call()
    assert result.applied and held > 0  # type: ignore[attr-defined]


def test_each_add_on_takes_part() -> None:
    found = {impl: bench.build(SMALL, impl, "cpu") for impl in SMALL.impls}
    losses = {impl: call().terms for impl, (call, _) in found.items()}  # type: ignore[attr-defined]
    plain = losses["plain"]["contrastive"]
    assert losses["ema"] == losses["plain"]
    assert plain < losses["hard_negatives K=1"]["contrastive"]
    assert losses["hard_negatives K=1"]["contrastive"] < losses["hard_negatives K=4"]["contrastive"]
    assert set(losses["gap CUAXU"]) - set(losses["gap CUA"]) == {"xuniformity"}
    assert len(losses["retrieval_fusion"]) == 3
    held = {impl: mb for impl, (_, mb) in found.items()}
    assert held["ema"] == pytest.approx(held["plain"] * 4 / 3)
    assert held["retrieval_fusion"] < held["retrieval_fusion, trained towers"]
    assert held["gap CUA"] == held["hard_negatives K=4"] == held["plain"]


def test_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(task):  # type: ignore[no-untyped-def]
        if task["what"] == "addons_memory":
            return {"extra_mb": 5.0, "held_mb": 2.0}
        return {i: [(float(n + 1), 2.0 * n + 2)] * 3 for n, i in enumerate(bench.ADDONS)}

    monkeypatch.setattr(bench, "in_fresh_process", answer)
    rows = {(r["case"], r["impl"]): r for r in bench.rows({"threads": 1, "device": "cpu"})}
    assert len(rows) == 2 * len(bench.ADDONS)
    assert rows["towers", "ema"]["cpu_ratio_to_plain"] == 2.0
    assert rows["large batch", "hard_negatives K=1"]["wall_s"] == 6.0


def test_both_cases_repeat_often_enough() -> None:
    assert min(bench.TOWERS.repeats, bench.LARGE_BATCH.repeats) >= 5
