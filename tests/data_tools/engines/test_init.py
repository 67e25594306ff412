"""Engines are found by name; what is not installed is named with the remedy."""

from __future__ import annotations

import importlib.util

import pytest

from clipkit.errors import ConfigError
from data_tools.engines import EXTRAS, load_engine


def test_the_remedy_of_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for engine, package in (("ray", "ray"), ("spark", "pyspark")):
        with pytest.raises(
            ConfigError, match=rf"{engine}' needs {package}: pip install 'clipkit\[{engine}\]'"
        ):
            load_engine(engine)
    assert callable(load_engine("process"))


def test_each_engine_has_a_run() -> None:
    for engine, package in EXTRAS.items():
        if not package or importlib.util.find_spec(package):
            assert callable(load_engine(engine))
