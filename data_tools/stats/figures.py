"""Pictures of the sums as SVG in data URIs; the same numbers give the same bytes."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from clipkit.eval.plots import PALETTE, STYLE
from data_tools.stats.aggregate import Histogram

_UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def histograms(panels: Sequence[tuple[str, Histogram]]) -> str:
    """A panel per (label, counts), side by side."""

    def draw(axes: list[Axes]) -> None:
        for axis, (label, found) in zip(axes, panels):
            axis.stairs(found.counts, found.edges, fill=True, color=PALETTE[0], alpha=0.85)
            axis.set(xlabel=label, ylabel="samples", ylim=(0, None))
            axis.set_xscale("log" if found.log else "linear")
            axis.yaxis.set_major_locator(MaxNLocator(5, integer=True))
            _ticks(axis.xaxis, found.log)
            _ticks(axis.yaxis, False)

    return _uri(draw, len(panels), 3.1, 2.9)


def sizes(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> str:
    """(k, k) counts of width x height as a map, its colours logarithmic."""

    def draw(axes: list[Axes]) -> None:
        (axis,) = axes
        shown = np.ma.masked_equal(counts.T, 0)
        top = max(int(counts.max(initial=1)), 2)
        mesh = axis.pcolormesh(x, y, shown, norm=LogNorm(1, top), cmap="viridis_r", rasterized=True)
        axis.set(xlabel="width", ylabel="height", xscale="log", yscale="log")
        for one in (axis.xaxis, axis.yaxis):
            _ticks(one, True)
        bar = axis.figure.colorbar(mesh, ax=axis, format=FuncFormatter(_short))
        bar.set_label("samples")
        bar.minorticks_off()
        axis.figure.set_dpi(150)

    return _uri(draw, 1, 3.5, 2.9)


def _ticks(axis: Axis, log: bool) -> None:
    """Short numbers; on a logarithmic axis at 1, 2 and 5 of each decade."""
    if log:
        axis.set_major_locator(LogLocator(10, subs=(1, 2, 5), numticks=8))
        axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(_short))


def _short(value: float, _: object = None) -> str:
    """12,000 -> 12k."""
    for unit, letter in _UNITS:
        if abs(value) >= unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.3g}"


def _uri(draw: Callable[[list[Axes]], None], panels: int, width: float, height: float) -> str:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(0.4 + width * panels, height), layout="constrained")
        canvas = FigureCanvasSVG(figure)
        draw(list(figure.subplots(1, panels, squeeze=False)[0]))
        buffer = io.BytesIO()
        canvas.print_svg(buffer, metadata={"Date": None, "Creator": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"
