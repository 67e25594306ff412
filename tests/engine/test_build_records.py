"""What saver and watchdog tell reaches log and status, by the rank that knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clipkit.config.schema import RunConfig
from clipkit.dist.group import World
from clipkit.engine import build_records
from clipkit.engine.build_records import build_log, build_saver, build_watchdog
from clipkit.engine.status import StatusFile


@pytest.fixture
def config() -> RunConfig:
    options = {"keep": 3, "keep_every": 7, "best": "a/b", "best_mode": "min", "background": False}
    train, data = {"total_steps": 1}, {"train": "a.tar"}
    return RunConfig.model_validate(
        {"train": train, "data": data, "checkpoint": options, "engine": {"timeout_s": 5}}
    )


def test_what_a_saver_tells_is_an_event_and_a_failure_an_alarm(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(build_records, "Saver", lambda *_, **kwargs: given.update(kwargs))
    log = build_log(config, tmp_path, World())
    build_saver(config, tmp_path, World(), log)
    assert {k: v for k, v in given.items() if k not in ("tell", "remote")} == {
        "keep": 3, "keep_every": 7, "best": "a/b", "best_mode": "min", "background": False,
    }  # fmt: skip
    given["tell"]("saved", "saved it", {"step": 4, "seconds": 1.5})
    assert log.num_alarms == 0
    given["tell"]("save_failed", "the disk is full", {"step": 8})
    log.close()
    lines = [json.loads(x) for x in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(x["kind"], x["step"], x.get("alarm", False)) for x in lines] == [
        ("saved", 4, False),
        ("save_failed", 8, True),
    ]
    assert lines[0]["seconds"] == 1.5 and log.num_alarms == 1


def test_a_rank_that_is_not_the_first_writes_when_it_ends_a_run_that_hangs(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(build_records, "Watchdog", lambda *_, **kwargs: given.update(kwargs))
    world = World(rank=1, world_size=2)
    log = build_log(config, tmp_path, world)
    build_watchdog(config, tmp_path, world, log, StatusFile(tmp_path, main=False))
    assert given["timeout_s"] == 5
    given["tell"]("straggler", "slow: rank 0", {"step": 3})
    assert not (tmp_path / "status.json").exists()
    given["tell"]("hang", "rank 0 is silent", {"step": 3})
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["exit_status"]) == ("failed", 75)
    assert "rank 0 is silent" in (tmp_path / "events.jsonl").read_text()
