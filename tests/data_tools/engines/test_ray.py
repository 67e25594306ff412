"""Ray writes the same bytes as worker processes, and loses only the shard of a dead worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data_tools.engines.parity import check_parity

pytest.importorskip("ray", reason="the extra clipkit[ray] is not installed")


@pytest.mark.slow
def test_the_same_outputs_as_worker_processes(tmp_path: Path) -> None:
    check_parity("ray", tmp_path, "WorkerCrashedError")
