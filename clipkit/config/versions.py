"""Installed packages with known holes: refused where foreign files could run code, else told.

setup.cfg asks pip for these versions; an environment that was made otherwise is found here.
"""

from __future__ import annotations

import importlib.metadata
from typing import NamedTuple

from packaging.version import InvalidVersion, Version

from clipkit.errors import ConfigError


class Gate(NamedTuple):
    """The first version of a package without a hole."""

    package: str
    needed: str
    hole: str


REFUSED = (
    Gate("torch", "2.6", "CVE-2025-32434: loading weights could run code"),
    Gate("deepspeed", "0.15.1", "CVE-2024-43497: remote code execution"),
    Gate("pillow", "12.3", "CVE-2026-59199: it can write out of bounds"),
    Gate("pyarrow", "14.0.1", "CVE-2023-47248: a Parquet file could run code"),
    Gate("pyyaml", "5.4", "CVE-2020-14343: a config could run code"),
)
WARNED = (
    Gate("torch", "2.10", "CVE-2026-24747: heap corruption when loading weights"),
    Gate("open_clip_torch", "3.3", "older ones are not tested"),
    Gate("webdataset", "1.0", "older ones are not tested"),
)


def check_versions() -> list[str]:
    """Warnings, one line each: package, installed and needed version.

    Raises:
        ConfigError: A package so old that it must not touch foreign files.
    """
    for gate in REFUSED:
        if old := _older(gate):
            raise ConfigError(
                f"{gate.package} {old} is unsafe ({gate.hole}); "
                f"pip install '{gate.package}>={gate.needed}'"
            )
    return [
        f"{gate.package} {old} is installed, {gate.needed} is needed ({gate.hole}); "
        f"pip install '{gate.package}>={gate.needed}'"
        for gate in WARNED
        if (old := _older(gate))
    ]


def _older(gate: Gate) -> str | None:
    """The installed version if it is older than the gate; a pre-release is."""
    try:
        installed = importlib.metadata.version(gate.package)
        return installed if Version(installed) < Version(gate.needed) else None
    except (importlib.metadata.PackageNotFoundError, InvalidVersion):
        return None
