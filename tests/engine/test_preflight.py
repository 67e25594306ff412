"""What is found before torch is imported; messages are held in tests/cli/test_bad_input.py."""

from __future__ import annotations

import contextlib
import importlib.util
from pathlib import Path

import pytest

from clipkit.config.load import load_config
from clipkit.engine import preflight
from clipkit.errors import CheckpointError, ConfigError, DataError
from tests.e2e.runs import write_run


def test_a_good_run_passes(tmp_path: Path) -> None:
    assert isinstance(preflight.preflight(load_config(write_run(tmp_path))), list)


def test_scaled_decoding_needs_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(write_run(tmp_path), ["data.decode=scaled"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs simplejpeg; pip install simplejpeg"):
        preflight.preflight(config)


def test_a_file_of_phrases_must_hold_some(tmp_path: Path) -> None:
    held = tmp_path / "held.txt"
    addon = {"kind": "hard_negatives", "forbid_file": str(held)}
    config = load_config(write_run(tmp_path, addons=[addon]))
    with pytest.raises(ConfigError, match=r"addons.hard_negatives.forbid_file: .* cannot be read"):
        preflight.preflight(config)
    held.write_text("# none\n")
    with pytest.raises(ConfigError, match="holds no phrase"):
        preflight.preflight(config)
    held.write_text("red circle\n")
    preflight.preflight(config)


def test_damaged_checkpoints_with_copies_elsewhere_are_no_end(tmp_path: Path) -> None:
    path, options = write_run(tmp_path), ["run.resume=auto"]
    config = load_config(path, options)
    folder = preflight.run_folder(config)
    (folder / "checkpoints" / "step_00000001").mkdir(parents=True)
    (folder / "config.yaml").touch()
    with pytest.raises(CheckpointError, match="no checkpoint is valid"):
        preflight.preflight(config)
    options.append(f"checkpoint.remote={tmp_path}/far")
    preflight.preflight(load_config(path, options))


@pytest.mark.parametrize(
    ("evaluated", "saved", "good"),
    [(4, 2, True), (4, 8, True), (4, 6, False), (4, 0, False), (0, 2, False)],
)
def test_the_best_checkpoint_is_one_that_was_evaluated(
    evaluated: int, saved: int, good: bool, tmp_path: Path
) -> None:
    options = [f"eval.every={evaluated}", f"checkpoint.every={saved}", "checkpoint.best=a/b"]
    config = load_config(write_run(tmp_path), options)
    with contextlib.nullcontext() if good else pytest.raises(ConfigError, match="checkpoint.best"):
        preflight.preflight(config)


def test_an_evaluation_folder_must_exist(tmp_path: Path) -> None:
    config = load_config(write_run(tmp_path), ["data.eval.classes=/absent/folder"])
    with pytest.raises(DataError, match="data.eval.classes: '/absent/folder'"):
        preflight.preflight(config)
