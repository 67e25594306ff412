"""A study's table: markdown for readers, one JSON object a cell for programs."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from clipkit.bench.measure import machine
from clipkit.bench.study.commands import Chain
from clipkit.bench.study.definition import Study
from clipkit.bench.study.execute import read_marker
from clipkit.bench.study.numbers import Cell, Gap

_FEW = 3  # seeds below which a row is marked


def facts_of(chains: Sequence[Chain]) -> dict[str, Any]:
    """What the numbers depend on besides the commands: versions, commits, machines."""
    notes = [read_marker(command) for chain in chains for command in chain.commands]
    here = machine(1, "cpu")
    known = {
        name: sorted({n[name] for n in notes if n and n.get(name)}) or [here[name]]
        for name in ("commit", "machine", "torch")
    }
    packages = {"clipkit": version("clipkit"), "open_clip": version("open_clip_torch")}
    return {**packages, "python": platform.python_version(), **known}


def json_lines(name: str, cells: Sequence[Cell], facts: dict[str, Any]) -> str:
    """One object a cell."""
    lines = []
    for cell in cells:
        gaps = {k: {**asdict(g), "same_sign": g.same_sign} for k, g in cell.gaps.items()}
        lines.append(json.dumps({"study": name, **asdict(cell), "gaps": gaps, **facts}) + "\n")
    return "".join(lines)


def markdown(study: Study, command: str, cells: Sequence[Cell], facts: dict[str, Any]) -> str:
    """The whole page; `command` is the line that runs the study."""
    parts = [f"# {study.title}", study.claim.strip()]
    parts.append(f"Models trained from scratch on {study.data}; no pretrained weights.")
    parts.append(
        "Each row: the mean over seeds, every seed, and the difference to a baseline with its 95 % "
        "interval (a bootstrap over test items of the mean over seeds, the same items for both: "
        'it does not cover seeds; "seeds": a t-test over seeds, for what is no mean of items), and '
        "how many seeds have its sign. Rows of fewer than three seeds say so."
    )
    parts.append(study.notes.strip())
    for metric in study.metrics:
        of_metric = [c for c in cells if c.metric == metric.title]
        for case in dict.fromkeys(c.case for c in of_metric):
            parts.append(_section(study, [c for c in of_metric if c.case == case]))
    parts.append(_commands(study, command))
    parts.append(
        "; ".join(f"{k} {', '.join(v) if isinstance(v, list) else v}" for k, v in facts.items())
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(study: Study, cells: Sequence[Cell]) -> str:
    first = cells[0]
    counts = sorted({c.n for c in cells if c.n is not None})
    size = f", {' or '.join(map(str, counts))} items" if counts else ""
    heading = f"## {first.metric}{f': {first.case}' if first.case else ''}"
    names = ["row", "mean", *(f"seed {s}" for s in study.seeds)]
    names += [f"minus {base}" for base in study.baseline]
    lines = [heading, "", f"{first.better.capitalize()} is better{size}.", ""]
    lines += ["| " + " | ".join(names) + " |", "|---|" + "---:|" * (len(names) - 1)]
    for cell in cells:
        count = len(cell.seeds)
        few = f" ({count} seed{'s' * (count > 1)})" if count < _FEW else ""
        row = [f"{cell.row}{few}", f"{cell.mean:.3f}"]
        row += [f"{cell.seeds[s]:.3f}" if s in cell.seeds else "-" for s in study.seeds]
        row += [_gap(cell.gaps.get(base)) for base in study.baseline]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def _gap(gap: Gap | None) -> str:
    if gap is None:
        return ""
    interval = ""
    if gap.interval is not None:
        over = " seeds" if gap.over == "seeds" else ""
        interval = f" [{gap.interval[0]:+.3f}, {gap.interval[1]:+.3f}]{over}"
    return f"{gap.value:+.3f}{interval}, {gap.same_sign} of {len(gap.seeds)}"


def _commands(study: Study, command: str) -> str:
    """The exact command lines; one line a row runs them."""
    return "\n".join(["## Commands", "", *_fenced(study, command)])


def _fenced(study: Study, command: str) -> Iterator[str]:
    def block(lines: Sequence[str]) -> Iterator[str]:
        yield from ("```", *(" ".join(line.split()) for line in lines), "```")

    yield f"`{command}` runs all of it, with `--rows NAME` one row."
    for case, values in study.cases.items():
        if values:
            yield f"\nCase {case}: " + ", ".join(f"{{{k}}} is `{v}`" for k, v in values.items())
    if study.setup:
        yield "\nOnce:\n"
        yield from block(study.setup)
    for row, lines in study.rows.items():
        yield f"\n{row}:\n"
        yield from block(lines)
