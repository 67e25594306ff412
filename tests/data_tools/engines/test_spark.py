"""PySpark writes the same bytes as worker processes, and loses only the shard of a dead worker."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.data_tools.engines.parity import check_parity

pytest.importorskip("pyspark", reason="the extra clipkit[spark] is not installed")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java")
def test_the_same_outputs_as_worker_processes(tmp_path: Path) -> None:
    check_parity("spark", tmp_path, "worker exited unexpectedly")
