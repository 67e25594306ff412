"""Pictures are SVG without scripts, and equal for equal numbers."""

import base64

import numpy as np
import pytest

from data_tools.stats import figures
from data_tools.stats.aggregate import Histogram


def content(uri: str) -> str:
    head, _, body = uri.partition(",")
    assert head == "data:image/svg+xml;base64"
    return base64.b64decode(body).decode()


@pytest.mark.parametrize("log", [True, False])
def test_histograms(log: bool) -> None:
    panel = Histogram(np.array([1.0, 10.0, 10_000.0]), np.array([0, 7]), log, {})
    one = figures.histograms([("bytes", panel), ("words", panel)])
    assert one == figures.histograms([("bytes", panel), ("words", panel)])
    svg = content(one)
    assert svg.count(">samples<") == 2 and ">bytes<" in svg and "<script" not in svg
    assert "10k" in svg


def test_maps_of_sizes() -> None:
    edges = np.geomspace(10, 1000, 6)
    counts = np.zeros((5, 5), dtype=np.int64)
    assert content(figures.sizes(edges, edges, counts))
    counts[0, 4] = 12
    svg = content(figures.sizes(edges, edges, counts))
    assert ">width<" in svg and ">height<" in svg
    turned = figures.sizes(edges, edges, counts.T)
    assert content(turned) != svg
