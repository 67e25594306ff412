"""Rows of the loader bench: what is compared reads the same samples; what is missing is said."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from clipkit.bench import decode, photographs
from clipkit.bench import loader as bench
from clipkit.cli.bench import app
from clipkit.data.shards import expand_shards
from clipkit.data.sources import ShardSource
from clipkit.errors import ConfigError

DECODED = {"impl": "clipkit", "stage": "decode", "side": 512, "images_per_s": 100.0}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process of its own, small pictures, decode rows from a table."""
    monkeypatch.setattr(bench, "in_fresh_process", lambda task: bench.TASKS[task["what"]](task))
    monkeypatch.setattr(bench, "_SIDE", 32)
    monkeypatch.setattr(decode, "decode_rows", lambda: [{**DECODED, "side": 32}])
    noise = np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8)
    monkeypatch.setattr(photographs, "photographs", lambda: {"noise": noise})
    monkeypatch.setattr(bench, "_BATCH", 32)
    monkeypatch.setattr(bench, "_LOADER", {"warm_up": 1, "batches": 2, "size": 32, "workers": 0})


def test_shards_hold_the_samples_asked_for(tmp_path: Path, small: None) -> None:
    source = ShardSource(expand_shards([bench.make_shards(tmp_path, 64)]))
    assert source.counts.tolist() == [8] * 8
    data = {source.members(p, r, ("jpg",), 10**6)["jpg"] for p in range(8) for r in range(8)}
    assert len(data) > 32  # cut differently: a cache of decoded pictures would not help


def test_rows_of_every_stage_and_the_peer_that_is_missing(small: None, tmp_path: Path) -> None:
    arguments = ["loader", "--json", "--samples", "512", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    found = {(r["stage"], r["impl"]): r for r in rows}
    assert set(found) == {
        ("decode", "clipkit"),
        ("read", "clipkit"),
        ("read", "open_clip"),
        ("end_to_end", "open_clip"),
        ("end_to_end", "clipkit"),
        ("end_to_end", "clipkit_scaled"),
    }
    read = found["read", "clipkit"]
    assert read["ratio_to_decode"] == pytest.approx(read["images_per_s"] / 100, rel=1e-3)
    assert found["read", "open_clip"]["ratio_to_open_clip"] == 1
    assert "webdataset==0.2.86" in found["end_to_end", "open_clip"]["skipped"]
    assert found["end_to_end", "clipkit"]["images_per_s"] > 0
    assert found["end_to_end", "clipkit"]["ratio_to_open_clip"] is None


def test_ratios_are_taken_turn_by_turn(monkeypatch: pytest.MonkeyPatch, small: None) -> None:
    """A machine that slows down between turns slows both."""
    speed = iter([10.0, 5.0, 2.0, 10.0, 4.0])
    ours = iter([20.0, 20.0, 10.0, 10.0, 4.0, 4.0, 20.0, 20.0, 8.0, 8.0])
    monkeypatch.setattr(bench, "_peer", lambda python, task: next(speed))
    monkeypatch.setattr(
        bench, "in_fresh_process", lambda task: {"samples": next(ours), "seconds": 1.0}
    )
    task: dict[str, Any] = {"repeats": 5, "batch": 32}
    rows = {r["impl"]: r for r in bench._loaders(task, Path("python"))}
    assert rows["clipkit"]["ratio_to_open_clip"] == 2
    assert rows["open_clip"]["ratio_to_open_clip"] == 1
    assert rows["clipkit"]["repeats"] == 5


def test_an_environment_without_the_peer_is_told_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be run"):
        bench.check_peer(tmp_path / "python")
    broken = tmp_path / "broken"
    broken.write_text(f"#!{sys.executable}\nraise SystemExit('No module named open_clip_train')\n")
    broken.chmod(0o755)
    with pytest.raises(ConfigError, match="No module named open_clip_train.*pip install"):
        bench.check_peer(broken)
