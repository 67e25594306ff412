"""The page: all sums and some samples in one HTML file that fetches nothing and runs nothing.

Whatever comes from the data is text on the page: escaped, and pictures encoded anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from clipkit.data.bad_samples import BadSample
from clipkit.data.shard_images import read_image
from clipkit.data.tar_index import TarIndex, load_index
from clipkit.errors import DataError
from clipkit.eval.plain_text import shortened
from clipkit.eval.templates import template
from clipkit.eval.thumbnails import thumbnail
from data_tools.stats import figures
from data_tools.stats.aggregate import Stats

_SIDE = 144  # pixels of a thumbnail's longer side
_CAPTION = 160  # characters shown
_PAGE = Path(__file__).with_name("stats.html.j2")


@dataclass(frozen=True)
class Shards:
    """What became of the shards.

    Attributes:
        paths: Name -> path of those that were read.
        damaged: (name, what is wrong with its tar).
        failed: (path, why it could not be read).
    """

    paths: Mapping[str, str]
    damaged: Sequence[tuple[str, str]]
    failed: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Picture:
    """A sample to look at; `uri` is None where its image cannot be shown."""

    uri: str | None
    key: str
    size: str
    caption: str
    small: bool


def page(stats: Stats, shards: Shards, command: str, decoded: bool) -> str:
    """The HTML.

    Args:
        stats: All sums.
        shards: What they were made from.
        command: Makes the page again; shown at its foot.
        decoded: Whether images were decoded, not only their headers read.
    """
    return template(_PAGE).render(
        version=version("clipkit"),
        command=command,
        decoded=decoded,
        shards=shards,
        stats=stats,
        headline=_headline(stats, shards),
        summaries=_summaries(stats),
        image_figure=_figure(stats, "image bytes", "aspect ratio"),
        caption_figure=_figure(stats, "caption characters", "caption words"),
        size_figure=figures.sizes(*stats.sizes) if stats.sizes else None,
        pictures=pictures(stats.chosen, shards.paths),
        shortened=shortened,
        share=_share,
        count=_count,
    )


def pictures(chosen: Sequence[Mapping[str, Any]], paths: Mapping[str, str]) -> list[Picture]:
    """Samples with their thumbnails, read from their shards."""
    opened: dict[str, TarIndex] = {}
    found = []
    for sample in chosen:
        try:
            shard, row = str(sample["shard"]), int(sample["row"])
            if shard not in opened:
                opened[shard] = load_index(paths[shard], write=False)
            if row >= len(opened[shard]):
                raise DataError("the shard has changed")
            uri = thumbnail(read_image(opened[shard], row), _SIDE)
        except (BadSample, DataError):
            uri = None
        width, height = sample["width"], sample["height"]
        found.append(
            Picture(
                uri,
                shortened(sample["key"], 60),
                f"{width} × {height}" if width else "",
                shortened(sample["caption"] or "", _CAPTION),
                bool(width) and 2 * max(width, height) <= _SIDE,
            )
        )
    return found


def _headline(stats: Stats, shards: Shards) -> list[tuple[str, str, str]]:
    """(name, number, words below it), the numbers read first."""
    totals = stats.totals
    n, usable = totals["samples"], totals["usable samples"]
    images, captions = totals["images"], totals["captions"]
    again = images - totals["distinct images"]
    same = captions - totals["distinct captions"]
    gigabytes = totals["bytes of images"] / 1e9
    size = f"{gigabytes:,.2f} GB" if gigabytes >= 0.1 else f"{1000 * gigabytes:,.1f} MB"
    return [
        ("samples", _count(n), f"in {_count(len(shards.paths))} shards, {size} of images"),
        ("usable", _share(usable, n), f"{_count(n - usable)} have an error"),
        ("with a caption", _share(captions, n), f"{_count(totals['distinct captions'])} distinct"),
        ("repeated images", _share(again, images), f"{_count(again)} have bytes seen before"),
        ("repeated captions", _share(same, captions), f"{_count(same)} have a text seen before"),
    ]


def _summaries(stats: Stats) -> list[tuple[str, list[tuple[str, str]]]]:
    return [
        (name, [(item, _number(value)) for item, value in found.summary.items()])
        for name, found in stats.histograms.items()
    ]


def _figure(stats: Stats, *names: str) -> str | None:
    panels = [(name, stats.histograms[name]) for name in names if name in stats.histograms]
    return figures.histograms(panels) if panels else None


def _share(part: int, whole: int) -> str:
    """A percentage that is 0 or 100 only where nothing or everything is meant."""
    if not whole:
        return "–"
    percent = 100 * part / whole
    text = f"{percent:.1f}"
    if text in ("0.0", "100.0") and 0 < part < whole:
        return "< 0.1 %" if part < whole / 2 else "> 99.9 %"
    return f"{text.removesuffix('.0')} %"


def _number(value: float) -> str:
    """Whole where it is whole or large, else two decimals."""
    return f"{value:,.0f}" if value >= 1000 or value == int(value) else f"{value:,.2f}"


def _count(value: int) -> str:
    return f"{value:,}"
