"""Old packages are told or refused by name, and setup.cfg asks for no less."""

from __future__ import annotations

import configparser
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from clipkit.config import versions
from clipkit.errors import ConfigError


def installed(monkeypatch: pytest.MonkeyPatch, **found: str) -> None:
    """Pretend that these versions are installed."""
    monkeypatch.setattr(importlib.metadata, "version", lambda name: found.get(name, "999.0"))


@pytest.mark.parametrize("gate", versions.REFUSED, ids=lambda g: g.package)
@pytest.mark.parametrize("old", ["0.0.1", "rc"])
def test_unsafe_versions_are_refused(monkeypatch, gate, old) -> None:  # type: ignore[no-untyped-def]
    old = f"{gate.needed}rc1" if old == "rc" else old
    installed(monkeypatch, **{gate.package: old})
    with pytest.raises(ConfigError, match=rf"^{gate.package} {old} is unsafe .*>={gate.needed}'$"):
        versions.check_versions()


def test_others_are_named_with_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, torch="2.9.1+cpu", webdataset="0.2.86")
    torch, webdataset = versions.check_versions()
    assert "torch 2.9.1+cpu is installed, 2.10 is needed (CVE-2026-24747" in torch
    assert "webdataset 0.2.86 is installed, 1.0 is needed" in webdataset


@pytest.mark.parametrize("found", ["2.10", "2.10.0+cu130", "3.0a1", "2.100", "git-abc"])
def test_new_ones_and_odd_ones_pass(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    installed(monkeypatch, torch=found)
    assert versions.check_versions() == []


def test_what_is_not_installed_is_no_hole(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    assert versions.check_versions() == []


def test_setup_asks_for_what_the_gates_need() -> None:
    parser = configparser.ConfigParser()
    parser.read(Path(__file__).parents[2] / "setup.cfg")
    lines = parser["options"]["install_requires"].split("\n")
    asked = {r.name: r.specifier for r in map(Requirement, filter(None, lines))}
    for gate in (*versions.REFUSED, *versions.WARNED):
        (bound,) = asked[gate.package]
        assert bound.operator == ">=" and Version(bound.version) >= Version(gate.needed), gate


def test_no_torch() -> None:
    code = "import sys, clipkit.config.versions; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
