"""Results of evaluation as one HTML page that needs nothing else: no network, no script, no folder.

Whatever comes from data sets and models is text on the page: escaped, and pictures encoded anew.
A page of three tasks takes well under 2 MB: about 3 kB a thumbnail, 5 to 60 kB a plot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from clipkit.checkpoint.files import write_text
from clipkit.eval.report_blocks import Block
from clipkit.eval.report_data import (
    Checkpoint,
    Value,
    by_data_set,
    checkpoint_of,
    facts,
    labels,
    last_given,
    main_metrics,
    newest,
    side_by_side,
    summarise,
    trends,
    with_chance,
)
from clipkit.eval.report_sections import blocks_of
from clipkit.eval.results import StoredResult
from clipkit.eval.templates import template
from clipkit.eval.thumbnails import Thumbnails

_PAGE = Path(__file__).with_name("report.html.j2")
_NOT_FACTS = ("metrics", "intervals", "counts", "macro", "details", "versions")


@dataclass(frozen=True)
class Section:
    """One result on the page.

    Attributes:
        anchor: Its address on the page.
        dataset, kind, checkpoint: What was evaluated how; `checkpoint` is a label.
        headline: (metric, value) of the main metrics.
        blocks: Figures, tables, cards.
        notes: What could not be shown.
        facts: (name, text) of everything the result depends on.
    """

    anchor: str
    dataset: str
    kind: str
    checkpoint: str
    headline: list[tuple[str, Value]]
    blocks: list[Block]
    notes: list[str]
    facts: list[tuple[str, str]]


def write_report(
    results: Sequence[StoredResult],
    out: Path,
    *,
    command: str,
    date: str,
    thumbnails: bool = True,
    progress: bool = False,
) -> Path:
    """Write the page, in place whole or not at all.

    Args:
        results: Of any tasks, data sets and checkpoints; at least one.
        out: The file.
        command: Makes the page again; shown at its foot.
        date: Of the page; the same results and date give the same bytes.
        thumbnails: Show samples, read from the data sets where they still are.
        progress: Show a progress bar.

    Raises:
        DataError: A result's metrics are no numbers.
        OSError: `out` cannot be written.
    """
    page = report_page(
        results, command=command, date=date, thumbnails=thumbnails, progress=progress
    )
    write_text(out, page)
    return out


def report_page(
    results: Sequence[StoredResult],
    *,
    command: str,
    date: str,
    thumbnails: bool = True,
    progress: bool = False,
) -> str:
    """The page's HTML; arguments and errors as for `write_report`."""
    files = {result.path.resolve(): result for result in results}
    kept = by_data_set(last_given(files.values()))
    shown = side_by_side(kept)
    checkpoints = list(dict.fromkeys(checkpoint_of(r) for r in shown))
    names = dict(zip(checkpoints, labels(checkpoints)))
    return template(_PAGE).render(
        version=version("clipkit"),
        date=date,
        command=command,
        checkpoints=_headers(kept),
        names=list(names.values()),
        groups=summarise(shown, checkpoints),
        trends=trends(kept),
        sections=_sections(newest(kept), names, Thumbnails(thumbnails), progress),
        num_results=len(kept),
        older=len(kept) - len(shown),
        replaced=len(files) - len(kept),
    )


def _headers(results: Sequence[StoredResult]) -> list[dict[str, Any]]:
    """A row of the header's table for each checkpoint."""
    checkpoints = list(dict.fromkeys(checkpoint_of(r) for r in results))
    return [
        {
            "name": name,
            "weights": checkpoint.weights,
            **facts([r for r in results if checkpoint_of(r) == checkpoint]),
        }
        for name, checkpoint in zip(labels(checkpoints), checkpoints)
    ]


def _sections(
    results: Sequence[StoredResult],
    names: dict[Checkpoint, str],
    thumbnails: Thumbnails,
    progress: bool,
) -> list[Section]:
    """A section per result."""
    console = Console(stderr=True)
    bar = track(results, "report", console=console, transient=True, disable=not progress)
    return [_section(f"r{i}", r, names[checkpoint_of(r)], thumbnails) for i, r in enumerate(bar)]


def _section(anchor: str, result: StoredResult, name: str, thumbnails: Thumbnails) -> Section:
    blocks, notes = blocks_of(result, thumbnails)
    headline = [(metric, with_chance(result, metric)) for metric in main_metrics(result)]
    known = [(k, str(v)) for k, v in result.data.items() if k not in _NOT_FACTS and v is not None]
    return Section(anchor, result.dataset, result.kind, name, headline, blocks, notes, known)
