"""What is found before torch is imported; messages are held in tests/cli/test_bad_input.py."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

import pytest

from clipkit.config.load import load_config
from clipkit.engine import preflight
from clipkit.errors import ConfigError, DataError
from tests.e2e.runs import write_run


def installed(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Pretend that these versions are installed."""
    monkeypatch.setattr(importlib.metadata, "version", lambda name: versions.get(name, "999.0"))


def test_a_good_run_passes(tmp_path: Path) -> None:
    assert isinstance(preflight.preflight(load_config(write_run(tmp_path))), list)


@pytest.mark.parametrize(
    ("package", "old"), [("torch", "2.5.1"), ("deepspeed", "0.15.0"), ("pillow", "12.2.0")]
)
def test_unsafe_versions_are_refused(
    monkeypatch: pytest.MonkeyPatch, package: str, old: str
) -> None:
    installed(monkeypatch, **{package: old})
    with pytest.raises(ConfigError, match=rf"{package} {old} is unsafe .*pip install"):
        preflight.check_versions()


def test_a_version_with_a_known_hole_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, torch="2.9.1+cpu")
    (warning,) = preflight.check_versions()
    assert "torch 2.9.1+cpu" in warning and "CVE-2026-24747" in warning
    installed(monkeypatch, torch="2.10.0")
    assert preflight.check_versions() == []


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


def test_an_evaluation_folder_must_exist(tmp_path: Path) -> None:
    config = load_config(write_run(tmp_path), ["data.eval.classes=/absent/folder"])
    with pytest.raises(DataError, match="data.eval.classes: '/absent/folder'"):
        preflight.preflight(config)
