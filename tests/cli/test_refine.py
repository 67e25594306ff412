"""Options of refined features, as the commands hand them on."""

from types import SimpleNamespace

import pytest

from clipkit import loading
from clipkit.cli.refine import RefineOptions
from clipkit.errors import ConfigError


def test_every_option_is_handed_on(monkeypatch):
    calls = []
    monkeypatch.setattr(loading, "refinements_of", lambda *a, **k: calls.append((a, k)) or ["r"])
    options = RefineOptions("auto", "mem", "prototype", "text", 0.5)
    assert options.build("place", SimpleNamespace(weights_hash="w"), "arch") == ["r"]
    facts = {"method": "prototype", "sides": "text", "shift": 0.5, "arch": "arch", "weights": "w"}
    assert calls == [(("place",), {"calibration": "auto", "memory": "mem", **facts})]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shift": 0.5}, "a shift needs means"),
        ({"memory": "m", "fusion": "mean"}, "choose head or prototype"),
        ({"memory": "m", "refine": "all"}, "choose both, image or text"),
        ({"fusion": "prototype"}, "give --memory"),
        *[
            ({"calibration": "c", "shift": value}, "--shift .*: choose a weight from -2 to 2")
            for value in (float("nan"), float("inf"), 1e30, -2.5)
        ],
        ({"refine": "text", "calibration": "c"}, "give --memory"),
    ],
)
def test_what_does_not_go_together_is_said_at_once(options, words):
    with pytest.raises(ConfigError, match=words):
        RefineOptions(**options)


def test_nothing_asked_for_is_nothing_done():
    assert not RefineOptions().build("nowhere", SimpleNamespace(weights_hash="w"))
