"""The compared implementations rank alike; rows say what was measured or why not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from clipkit.bench import retrieval as bench
from clipkit.cli.bench import app
from clipkit.errors import ClipkitError, ConfigError
from clipkit.retrieval.ranks import recall_at

TASK = {"threads": 1, "device": "cpu", "dim": 16}


@pytest.mark.parametrize("case", bench.CASES)
def test_same_ranks(case: str) -> None:
    rows = bench.features(case, 300, 16)
    expected = bench.naive(*rows)
    assert torch.equal(bench.one_way(*rows), expected)
    assert torch.equal(bench.both_ways(*rows), expected)


@pytest.mark.parametrize("size", [500, 3000])
def test_paired_features_put_half_of_the_positives_first(size: int) -> None:
    assert 0.35 < recall_at(bench.one_way(*bench.features("paired", size, 128)), 1) < 0.65
    assert recall_at(bench.one_way(*bench.features("random", size, 128)), 1) < 0.02


def test_the_product_covers_every_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    product = torch.mm

    def counted(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        sizes.append(out.numel())
        return product(a, b, out=out)

    monkeypatch.setattr(torch, "mm", counted)
    bench.matmul(*bench.features("random", 1500, 4))
    assert sum(sizes) == 1500**2


def test_a_matrix_that_does_not_fit_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "free_mb", lambda: 1000.0)
    assert bench.why_not("naive", 4096, "cpu") is None
    assert bench.why_not("naive", 50_000, "cpu") == "needs about 15 GB, 1 GB are free"
    assert bench.why_not("both_ways", 50_000, "cpu") is None


def test_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(task):  # type: ignore[no-untyped-def]
        if task["what"] == "retrieval_memory":
            if task["impl"] == "naive":
                raise ClipkitError("killed")
            return {"extra_mb": 5.0}
        seconds = {"matmul": 2.0, "one_way": 3.0, "both_ways": 4.0}
        times = {i: [(seconds[i], 1.0)] * task["repeats"] for i in task["impls"]}
        return {"times": times, "recall": dict.fromkeys(task["impls"], 0.5)}

    monkeypatch.setattr(bench, "in_fresh_process", answer)
    rows = {(r["impl"], r["case"]): r for r in bench.rows([1000], TASK)}
    assert len(rows) == 8
    assert rows["one_way", "paired"]["cpu_ratio_to_matmul"] == 1.5
    assert rows["both_ways", "random"]["wall_ratio_to_matmul"] == 1.0
    assert rows["naive", "paired"]["skipped"] == "killed"
    assert {"batch", "dim", "cpu_s", "wall_s", "extra_mb"} <= rows["matmul", "paired"].keys()


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "in_fresh_process", lambda task: bench.TASKS[task["what"]](task))
    arguments = ["retrieval", "--sizes", "1,64,100", "--dim", "16", "--json", "--threads", "1"]
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path)], catch_exceptions=False)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {(r["impl"], r["batch"]) for r in rows} >= {("one_way", 64), ("naive", 100)}
    assert all(r["machine"] and r["torch"] and r["extra_mb"] is not None for r in rows)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["retrieval.jsonl", "retrieval.md"]


def test_a_mistaken_size_is_named() -> None:
    with pytest.raises(ConfigError, match="--sizes 'x'"):
        CliRunner().invoke(app, ["retrieval", "--sizes", "x"], catch_exceptions=False)
