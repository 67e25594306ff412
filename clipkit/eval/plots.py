"""Pictures of a report: figures as SVG in data URIs, in colours that all eyes tell apart.

No state is shared: figures are made without pyplot, and the same numbers give the same bytes.
Shapes: C classes, n points, k bins.
"""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from clipkit.eval.plain_text import printable, shortened

# Okabe and Ito's palette without its yellow, which is too faint on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small, sharp, and any script the browser has
    "svg.hashsalt": "clipkit",
    "text.parse_math": False,  # a class may be called $x$
    "font.size": 10,
    "font.family": ["sans-serif"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
    "legend.frameon": False,
}
_NUMBERED = 12  # classes up to which cells of a confusion matrix carry their counts
_POINTS = 2000  # of one cloud; more would only make the page large


@dataclass(frozen=True)
class Line:
    """One line of a trend.

    Attributes:
        label: Of the run.
        steps: (n,) rising.
        values: (n,).
        low, high: (n,) ends of the 95 % intervals; NaN where there is none.
    """

    label: str
    steps: Sequence[float]
    values: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@contextmanager
def _axes(width: float, height: float, columns: int = 1) -> Iterator[tuple[list[Axes], list[str]]]:
    """Axes to draw in; on leaving, the figure's data URI is appended to the list."""
    out: list[str] = []
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # matplotlib measures text with its own fonts; the browser draws it with others.
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        figure = Figure(figsize=(width, height), layout="constrained")
        canvas = FigureCanvasSVG(figure)
        yield list(figure.subplots(1, columns, squeeze=False)[0]), out
        buffer = io.BytesIO()
        canvas.print_svg(buffer, metadata={"Date": None, "Creator": None})
        out.append(f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}")


def confusion(matrix: Sequence[Sequence[float]], classes: Sequence[str]) -> str:
    """(C, C) counts, rows the true class; the colour is the share of the row."""
    counts = np.asarray(matrix, dtype=float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = len(classes)
    side = float(np.clip(1.4 + 0.34 * size, 3.2, 9.5))
    with _axes(side + 1.1, side) as ((axis,), out):
        picture = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        names = [shortened(printable(name), 24) for name in classes]
        axis.set_xticks(range(size), names, rotation=45 if size <= 24 else 90)
        for label in axis.get_xticklabels():
            label.set_horizontalalignment("right" if size <= 24 else "center")
            label.set_rotation_mode("anchor" if size <= 24 else "default")
        axis.set_yticks(range(size), names)
        axis.tick_params(labelsize=10 if size <= 24 else 7)
        axis.set(xlabel="predicted class", ylabel="true class")
        axis.grid(False)
        if size <= _NUMBERED:
            for (i, j), count in np.ndenumerate(counts):
                if count:
                    color = "white" if shares[i, j] > 0.5 else "black"
                    axis.text(j, i, f"{count:g}", ha="center", va="center", color=color)
        bar = axis.figure.colorbar(picture, ax=axis, shrink=0.8)
        bar.set_label("share of the true class")
    return out[0]


def clouds(image: Sequence[Sequence[float]], text: Sequence[Sequence[float]]) -> str:
    """(n, 2) coordinates of image and of text features on their two principal components."""
    with _axes(5.2, 4.4) as ((axis,), out):
        for points, label, color, marker in (
            (image, "images", PALETTE[0], "o"),
            (text, "texts", PALETTE[1], "^"),
        ):
            x, y = np.asarray(points[:_POINTS], dtype=float).reshape(-1, 2).T
            axis.scatter(
                x, y, s=16, c=color, marker=marker, alpha=0.6, linewidths=0, label=label,
                rasterized=True,
            )  # fmt: skip
        axis.set(xlabel="first principal component", ylabel="second principal component")
        axis.set_aspect("equal", "datalim")
        axis.legend(loc="best")
        axis.figure.set_dpi(150)
    return out[0]


def histograms(
    panels: Sequence[tuple[str, Sequence[float], Sequence[tuple[str, Sequence[float]]]]],
) -> str:
    """A panel per (axis label, (k + 1,) edges, [(label, (k,) counts)]); counts drawn as shares."""
    width = 5.2 if len(panels) == 1 else 0.6 + 4.0 * len(panels)
    with _axes(width, 3.8, len(panels)) as (axes, out):
        for axis, (xlabel, edges, sides) in zip(axes, panels):
            for (label, counts), color, style in zip(sides, PALETTE, ("-", "--", ":")):
                shares = np.asarray(counts, dtype=float) / max(sum(counts), 1e-12)
                axis.stairs(shares, edges, color=color, alpha=0.25, fill=True)
                axis.stairs(shares, edges, color=color, linestyle=style, label=label, linewidth=1.6)
            axis.set(xlabel=shortened(printable(xlabel), 40), ylabel="share per bin")
            axis.xaxis.set_major_locator(MaxNLocator(5))
        handles, names = axes[0].get_legend_handles_labels()
        axes[0].figure.legend(handles, names, loc="outside upper left", ncols=2)
    return out[0]


def reliability(
    curves: Iterable[tuple[str, Sequence[float], Sequence[float], Sequence[float]]],
) -> str:
    """Accuracy against confidence for each (label, confidence, accuracy, count), (k,) bins each.

    A point's area grows with its bin's count; bins without samples are left out.
    """
    with _axes(5.2, 4.4) as ((axis,), out):
        axis.plot([0, 1], [0, 1], color="#767676", linestyle=":", label="calibrated")
        for (label, confidence, accuracy, count), color, marker in zip(curves, PALETTE, "osD^vP*"):
            x, y, n = (np.asarray(v, dtype=float) for v in (confidence, accuracy, count))
            there = n > 0
            area = 12 + 90 * n[there] / max(n.max(initial=0.0), 1.0)
            axis.plot(x[there], y[there], color=color, linewidth=1.2)
            axis.scatter(
                x[there], y[there], s=area, color=color, marker=marker, alpha=0.8, linewidths=0,
                label=shortened(printable(label), 30),
            )  # fmt: skip
        axis.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
        axis.legend(loc="upper left")
    return out[0]


def trend(panels: Sequence[tuple[str, Sequence[Line]]]) -> str:
    """One panel per (metric, lines): value over step with its 95 % band."""
    with _axes(0.6 + 4.0 * len(panels), 3.6, len(panels)) as (axes, out):
        for axis, (metric, lines) in zip(axes, panels):
            for number, line in enumerate(lines):
                color, marker = PALETTE[number % len(PALETTE)], "os^Dv"[number % 5]
                axis.fill_between(line.steps, line.low, line.high, color=color, alpha=0.2, lw=0)
                label = shortened(printable(line.label), 30)
                axis.plot(line.steps, line.values, marker=marker, ms=4, color=color, label=label)
            axis.set(xlabel="step", ylabel=shortened(printable(metric), 40))
            axis.ticklabel_format(axis="x", useOffset=False, style="plain")
        if len(panels[0][1]) > 1:
            axes[0].legend(loc="best")
    return out[0]
