"""One run at a time in a folder, and a record of the settings it was trained with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from clipkit.config.load import load_config
from clipkit.config.schema import RunConfig
from clipkit.engine.run_folder import (
    changed_settings,
    claim,
    is_live,
    may_write,
    write_config,
)
from clipkit.errors import ConfigError
from tests.e2e.runs import write_run


def test_a_second_process_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipkit.engine.run_folder._PATIENCE_S", 0.0)
    lock = claim(tmp_path / "run")
    with pytest.raises(
        ConfigError, match=rf"another process is training there \(pid {os.getpid()}"
    ):
        claim(tmp_path / "run")
    assert is_live(tmp_path / "run") and may_write(tmp_path / "run")  # ours
    (tmp_path / "run" / ".lock").write_text("pid 1 on elsewhere")
    assert not may_write(tmp_path / "run")
    lock.close()
    assert not is_live(tmp_path / "run") and may_write(tmp_path / "run")
    claim(tmp_path / "run").close()


def test_a_lock_that_a_dead_process_left_is_no_hindrance(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from clipkit.engine.run_folder import claim
lock = claim(Path(sys.argv[1]))
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], check=False)
    left = (tmp_path / "run" / ".lock").read_text()
    assert "pid" in left and not is_live(tmp_path / "run")
    claim(tmp_path / "run").close()
    now = (tmp_path / "run" / ".lock").read_text()
    assert now != left and now.count("pid") == 1


def test_a_lock_that_is_freed_soon_is_waited_for(tmp_path: Path) -> None:
    """A child of the process that was killed, or a reader who looked at just that moment."""
    lock = claim(tmp_path / "run")
    threading.Timer(0.3, lock.close).start()
    claim(tmp_path / "run").close()


def test_a_folder_that_cannot_be_made_is_named() -> None:
    with pytest.raises(ConfigError, match="/dev/null/x.*cannot be written"):
        claim(Path("/dev/null/x"))


def test_changed_settings_are_told_and_the_old_ones_kept(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    assert changed_settings(folder, load_config(path)) == []
    write_config(folder, load_config(path), 0)
    assert changed_settings(folder, load_config(path, ["data.workers=3", "log.every=5"])) == []
    changed = load_config(path, ["optim.lr=1e-2", "loss.kind=siglip"])
    lines = changed_settings(folder, changed)
    assert "resumed with optim.lr=0.01, was 0.001" in lines
    assert any("siglip" in line and "infonce" in line for line in lines)
    write_config(folder, changed, 7)
    assert "lr: 0.001" in (folder / "config_until_00000007.yaml").read_text()
    assert "lr: 0.01" in (folder / "config.yaml").read_text()


def test_arguments_of_listed_parts_are_told_one_by_one(tmp_path: Path) -> None:
    def config(*addons: str) -> RunConfig:
        return load_config(write_run(tmp_path), [f"addons=[{', '.join(addons)}]"])

    folder = tmp_path / "run"
    folder.mkdir()
    write_config(folder, config("{kind: gap}", "{kind: ema}"), 0)
    lines = changed_settings(folder, config("{kind: gap, t: 3}", "{kind: ema}"))
    assert lines == ["resumed with addons.0.t=3.0, was 2.0"]
    lines = changed_settings(folder, config("{kind: ema}", "{kind: gap}"))
    assert "resumed with addons.0.kind='ema', was 'gap'" in lines
    assert "resumed with addons.1.kind=None, was 'ema'" in changed_settings(
        folder, config("{kind: gap}")
    )


@pytest.mark.parametrize("text", ["data: &d {train: *d}", "a: 2001-99-99", "[" * 5000])
def test_a_saved_config_that_is_none_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    config = RunConfig.model_validate({"data": {"train": "x"}, "train": {"total_steps": 1}})
    assert changed_settings(tmp_path, config) == [
        f"{tmp_path / 'config.yaml'} cannot be read; settings are not compared"
    ]


def test_a_worker_that_outlives_its_run_does_not_hold_the_folder(tmp_path: Path) -> None:
    lock, (begun, begin) = claim(tmp_path), os.pipe()
    child = os.fork()
    if child == 0:
        os.write(begin, b"x")
        time.sleep(60)
        os._exit(0)
    try:
        assert os.read(begun, 1) and is_live(tmp_path)
        lock.close()
        assert not is_live(tmp_path)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_resume_with_the_same_settings_needs_no_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*words: object) -> None:
        raise OSError(28, "No space left on device")

    config = load_config(write_run(tmp_path))
    write_config(tmp_path, config, 0)
    monkeypatch.setattr("clipkit.engine.run_folder.write_text", full)
    write_config(tmp_path, config, 5)
