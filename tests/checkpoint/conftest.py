"""What looks late is waited for, here for a moment only."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipkit.checkpoint.verify._PAUSES_S", (0.001, 0.001, 0.001))
