"""The compared steps train: each implementation runs, accumulation as its library does."""

from __future__ import annotations

import dataclasses

import pytest

from clipkit.bench import step as bench

SMALL = dataclasses.replace(bench.CASES[1], batch=16, chunks=4, image=(64, 1), text=(64, 1))


@pytest.mark.parametrize("impl", SMALL.impls)
def test_runs(impl: str) -> None:
    bench.build(SMALL, impl, "cpu")()


def test_the_large_tower_has_20m_parameters() -> None:
    large = bench.CASES[0]
    assert bench.num_parameters(large)[0] >= 20_000_000
    assert large.batch // large.chunks >= 64
    assert large.repeats >= 7


def test_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(task):  # type: ignore[no-untyped-def]
        if task["what"] == "step_memory":
            return {"extra_mb": 5.0}
        return {i: [(float(n + 1), 1.0)] * 3 for n, i in enumerate(task["impls"])}

    monkeypatch.setattr(bench, "in_fresh_process", answer)
    rows = {(r["case"], r["impl"]): r for r in bench.rows({"threads": 1, "device": "cpu"})}
    assert rows["large towers", "cached"]["cpu_ratio_to_plain"] == 2.0
    assert rows["large batch", "open_clip accumulation"]["chunks"] == 8
