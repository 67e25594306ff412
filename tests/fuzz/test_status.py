"""What `clipkit status` shows of run folders of others: plain lines, whatever they hold."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipkit.cli.status import status
from tests.fuzz.bounds import bounds, cases, some_or_many
from tests.fuzz.mutations import changed_json

STATUS = {
    "state": "running", "exit_status": None, "error": "e", "step": 3, "total_steps": 9,
    "samples_per_s": 1.5, "eta_s": 4, "last_checkpoint": "step_00000003", "skipped": 1,
    "bad_samples": 2, "stragglers": ["rank 1"], "host": "h", "pid": 3, "job_id": "j",
    "alarms": {"count": 1, "last": [{"time": "t", "step": 1, "kind": "k", "text": "x"}]},
}  # fmt: skip
LINE = {"step": 1, "train/loss": 1.0, "train/data_wait": 0.1, "train/peak_memory_gb": 1.0}


def shown(folder: Path, capsys: pytest.CaptureFixture[str], *, alone: bool, as_json: bool) -> str:
    """Output of the command."""
    with bounds(folder), contextlib.suppress(SystemExit):
        status([folder] if alone else [folder, folder], as_json)
    return capsys.readouterr().out


@some_or_many(100, 2000)
def test_status(tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int) -> None:
    @cases(count)
    @given(changed_json(STATUS), changed_json(LINE), st.booleans(), st.booleans())
    def one(content: bytes, line: bytes, alone: bool, as_json: bool) -> None:
        (tmp_path / "status.json").write_bytes(content)
        (tmp_path / "metrics.jsonl").write_bytes(line + b"\n" + b"[" * 3000 + b"\n" + line)
        assert "\x1b" not in shown(tmp_path, capsys, alone=alone, as_json=as_json)

    one()


def test_commands_to_a_terminal_are_shown_as_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alarm = {"time": "\x1b[1m", "step": 1, "text": "\x1b]0;title\x07"}
    values = {"error": "\x1b[2J", "host": "\x1b[5m", "alarms": {"count": 1, "last": [alarm]}}
    (tmp_path / "status.json").write_text(json.dumps({**STATUS, "state": "failed", **values}))
    for alone in (True, False):
        out = shown(tmp_path, capsys, alone=alone, as_json=False)
        assert "failed" in out and "\x1b" not in out and "\x07" not in out
