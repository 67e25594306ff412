"""metrics.jsonl, wandb beside it, and no secret in either."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from clipkit.engine.log import RunLog

SECRET = "hf_" + "a1B2c3D4e5F6g7H8i9J0"


def wandb_records(path: Path) -> list[bytes]:
    """Payloads of a .wandb file: a 7-byte head, then LevelDB's log of 32 KB blocks."""
    data, position, records, part = path.read_bytes(), 7, [], b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        length, kind = (
            int.from_bytes(data[position + 4 : position + 6], "little"),
            data[position + 6],
        )
        part += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            records.append(part)
            part = b""
    return records


def wandb_history(folder: Path) -> list[dict[str, Any]]:
    """Metric rows of an offline wandb run, read from its own file."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.rglob("*.wandb")
    rows = []
    for data in wandb_records(path):
        record = wandb_internal_pb2.Record.FromString(data)
        if record.WhichOneof("record_type") == "history":
            row = {
                ".".join(i.nested_key) or i.key: json.loads(i.value_json)
                for i in record.history.item
            }
            rows.append({"step": row["_step"], **{k: v for k, v in row.items() if k[0] != "_"}})
    return rows


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), OSError(5, "tty is gone")])
def test_who_reads_the_screen_may_leave(tmp_path: Path, error: OSError) -> None:
    class Left(io.StringIO):
        def write(self, text: str) -> int:
            raise error

    log = RunLog(tmp_path, main=True)
    log.console.file = Left()
    log.say("one")
    log.event("saved", 1, "two")
    assert (tmp_path / "events.jsonl").exists()


def test_offline_wandb_holds_the_metrics_of_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["clipkit", "train", f"log.token={SECRET}", SECRET])
    monkeypatch.setenv("WANDB_MODE", "offline")
    log = RunLog(
        tmp_path,
        main=True,
        total_steps=3,
        progress=False,
        wandb_mode="offline",
        name="n",
        config={
            "run": {"api_key": "sk-abcdefghijklmnopqrstu"},
            "data": {"train": f"https://u:pw@host/{SECRET}"},
        },
    )
    log.begin(0)
    for step in (1, 2, 3):
        log.metrics(step, {"train/loss": 1.5 / step, "train/lr": 0.1 * step, "eval/x/acc1": 0.25})
    log.close()
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    deadline = time.monotonic() + 20  # wandb's own process writes the file
    while len(wandb_history(tmp_path)) < len(lines) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert wandb_history(tmp_path) == lines
    assert [line["train/loss"] for line in lines] == [1.5, 0.75, 0.5]
    for path in tmp_path.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert SECRET.encode() not in data, path
            assert b"sk-abcdefghij" not in data and b":pw@" not in data, path


def test_a_broken_wandb_never_stops_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        @staticmethod
        def init(**_: Any) -> Any:
            raise RuntimeError("no network")

    monkeypatch.setitem(sys.modules, "wandb", Broken)
    log = RunLog(tmp_path, main=True, progress=False, wandb_mode="online")
    log.begin(0)
    log.metrics(1, {"train/loss": 1.0})
    log.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "train/loss": 1.0}


def test_a_resumed_log_joins_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": s, "train/loss": 1.0}) for s in (1, 2, 3, 4)]
    path.write_text("\n".join(lines) + '\n{"step": 5, "train/l')
    log = RunLog(tmp_path, main=True, progress=False)
    log.begin(2)
    log.metrics(3, {"train/loss": 0.5})
    log.close()
    steps = [json.loads(x) for x in path.read_text().splitlines()]
    assert [(s["step"], s["train/loss"]) for s in steps] == [(1, 1.0), (2, 1.0), (3, 0.5)]


def test_non_finite_numbers_stay_valid_json(tmp_path: Path) -> None:
    log = RunLog(tmp_path, main=True, progress=False)
    log.begin(0)
    log.metrics(1, {"train/loss": float("nan"), "train/grad_norm": float("inf")})
    log.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["train/loss"] is None


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    log = RunLog(tmp_path, main=False)
    log.begin(0)
    log.metrics(1, {"train/loss": 1.0})
    log.say("quiet")
    log.close()
    assert not os.listdir(tmp_path)


def test_events_are_kept_and_alarms_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = RunLog(tmp_path, main=True, progress=False)
    log.event("saved", 10, files=3)
    for step in range(7):
        log.event("skipped", step, f"loss not finite, token={SECRET}", alarm=True)
    log.close()
    lines = [json.loads(x) for x in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(x["kind"], x["step"]) for x in lines[:2]] == [("saved", 10), ("skipped", 0)]
    assert lines[0]["files"] == 3 and "alarm" not in lines[0] and lines[1]["alarm"] is True
    assert log.num_alarms == 7 and [a["step"] for a in log.last_alarms] == [2, 3, 4, 5, 6]
    told = capsys.readouterr().err
    assert told.count("loss not finite") == 7 and "step 10" not in told
    assert SECRET not in told and SECRET not in (tmp_path / "events.jsonl").read_text()


def test_an_event_never_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RunLog(tmp_path / "none", main=True, progress=False)
    circle: list[Any] = []
    circle.append(circle)
    log.event("odd", 1, "what", value=circle)
    log.event("odd", 1, "what", value={object(): 1})

    class Gone:
        @staticmethod
        def write(_: str) -> None:
            raise OSError(5, "Input/output error")

        flush = write

    log.console.file = Gone()  # type: ignore[assignment]  (the terminal was closed)
    log.event("odd", 1, "what", alarm=True)
    log.tick(1, "loss 1")
    with log.live(0):
        log.warn("still here")
    assert log.num_alarms >= 1


def test_metrics_on_a_full_disk_alarm_once_and_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = RunLog(tmp_path, main=True, progress=False)
    log.begin(0)
    log.metrics(1, {"train/loss": 1.0})
    write = os.write

    def full(descriptor: int, data: bytes) -> int:
        if b"train/loss" in data:
            raise OSError(28, "No space left on device")
        return write(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr("clipkit.engine.json_lines.os.write", full)
        for step in (2, 3, 4):
            log.metrics(step, {"train/loss": 1.0})
    log.metrics(5, {"train/loss": 1.0})
    log.close()
    steps = [json.loads(x)["step"] for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 5]
    (event,) = [json.loads(x) for x in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert (event["kind"], event["step"], log.num_alarms) == ("log_failed", 2, 1)
    assert "No space left" in event["text"]


def test_another_rank_may_take_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(tmp_path, main=False)
    log.event("hang", 1, "unheard")
    log.take_over()
    log.event("hang", 2, "rank 0 hangs", alarm=True)
    (event,) = [json.loads(x) for x in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert event["text"] == "rank 0 hangs" and "rank 0 hangs" in capsys.readouterr().err
