"""Plots are whole SVG, the same each time, and labels stay text."""

import base64
import xml.etree.ElementTree as ElementTree

import pytest

from clipkit.eval import plots

HOSTILE = ["$\\frac{$", "<script>x</script>", "a\x00\ud800b", "猫&\"'"]


def svg(uri):
    prefix = "data:image/svg+xml;base64,"
    assert uri.startswith(prefix)
    content = base64.b64decode(uri[len(prefix) :], validate=True)
    return ElementTree.fromstring(content)


def texts(uri):
    return ["".join(e.itertext()) for e in svg(uri).iter() if e.tag.endswith("}text")]


def test_confusion_carries_counts_and_names():
    shown = texts(plots.confusion([[3, 1], [0, 17]], ["cat", "dog"]))
    assert {"3", "1", "17"} <= set(shown) and shown.count("cat") == 2
    assert "true class" in shown and "predicted class" in shown
    assert "17" not in texts(plots.confusion([[17] * 13] * 13, [str(i + 100) for i in range(13)]))


def test_names_of_classes_stay_text():
    uri = plots.confusion([[1] * 4] * 4, HOSTILE)
    shown = texts(uri)
    assert "$\\frac{$" in shown and "<script>x</script>" in shown and "a\ufffd\ufffdb" in shown
    assert not [e for e in svg(uri).iter() if e.tag.endswith("script")]


LINE = plots.Line("<b>$x$", [1, 2], [0.1, 0.2], [0.0, 0.1], [0.2, float("nan")])


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.confusion([[0, 0], [0, 0]], ["a", "b"]),
        lambda: plots.clouds([[0.0, 1.0]] * 5000, [[1.0, 0.0]]),
        lambda: plots.histograms([("cosine", [0.0, 0.5, 1.0], [("a", [0, 0]), ("b", [1, 2])])] * 2),
        lambda: plots.reliability([("x", [0.1, 0.0], [0.2, 0.0], [5, 0])]),
        lambda: plots.trend([("acc$1", [LINE, LINE]), ("m", [LINE])]),
    ],
)
def test_every_plot_is_whole_small_and_the_same_each_time(draw):
    first = draw()
    assert svg(first).tag.endswith("svg") and first == draw() and len(first) < 120_000


def test_histograms_draw_shares(monkeypatch):
    drawn = []
    stairs = plots.Axes.stairs
    monkeypatch.setattr(
        plots.Axes,
        "stairs",
        lambda self, v, e, **k: drawn.append(list(v)) or stairs(self, v, e, **k),
    )
    plots.histograms([("cosine", [0, 1, 2], [("matched", [1, 3]), ("mismatched", [20, 20])])])
    assert drawn[1] == [0.25, 0.75] and drawn[3] == [0.5, 0.5]


def test_empty_bins_are_left_out_of_the_reliability_curve(monkeypatch):
    drawn = []
    scatter = plots.Axes.scatter
    monkeypatch.setattr(
        plots.Axes,
        "scatter",
        lambda self, x, y, **k: drawn.append(list(x)) or scatter(self, x, y, **k),
    )
    plots.reliability([("model", [0.1, 0.0, 0.9], [0.2, 0.0, 0.8], [5, 0, 5])])
    assert drawn == [[0.1, 0.9]]


def test_no_state_of_matplotlib_changes():
    import matplotlib

    before = dict(matplotlib.rcParams)
    plots.trend([("m", [LINE])])
    assert dict(matplotlib.rcParams) == before
