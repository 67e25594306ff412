"""Who starts Ray, and a cluster that does not answer."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

from clipkit.dist.ray import start
from clipkit.errors import ConfigError


class PlainRay(ModuleType):
    """Notes what it is started with; no cluster is in reach."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.calls: list[dict[str, Any]] = []

    def is_initialized(self) -> bool:
        return bool(self.calls)

    def init(self, **options: Any) -> None:
        if "address" in options:
            raise ConnectionError("no head\nand more")
        self.calls.append(options)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> PlainRay:
    found = PlainRay()
    monkeypatch.setitem(sys.modules, "ray", found)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    return found


def test_it_is_started_once_with_what_is_asked_for(ray: PlainRay) -> None:
    assert start(3) and not start(5)
    assert [call["num_cpus"] for call in ray.calls] == [3]


def test_a_cluster_that_does_not_answer(ray: PlainRay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "far:1")
    with pytest.raises(ConfigError, match=r"^RAY_ADDRESS=far:1: no cluster answers \(no head\)$"):
        start()
    assert not ray.calls
