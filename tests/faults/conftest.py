"""The run without a fault, once for all: 40 steps on two ranks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.engine.inprocess import fit_in_pool
from tests.faults.harness import write_config


@dataclass(frozen=True)
class Reference:
    """A finished run and the config it came from; others set run.dir to their own folder."""

    config: Path
    run: Path


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory, ranks) -> Reference:  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("reference")
    config = write_config(folder)
    ranks(2).run(fit_in_pool, str(config), ["data.workers=0"])
    return Reference(config, folder / "runs" / "r")
