"""What a report is made of: pictures, tables, and cards of samples.

The template draws a block by its `layout`. All strings are raw; it escapes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from clipkit.eval.report_data import Value


@dataclass(frozen=True)
class FigureBlock:
    """A picture; `uri` holds its data, `alt` says it in words, `wide` gives it the page's width."""

    title: str
    uri: str
    alt: str
    note: str = ""
    wide: bool = False
    layout: ClassVar[str] = "figure"


@dataclass(frozen=True)
class TableBlock:
    """A table: texts left, numbers right, values with their intervals."""

    title: str
    header: list[str]
    rows: list[list[str | Value]]
    note: str = ""
    layout: ClassVar[str] = "table"


@dataclass(frozen=True)
class Card:
    """A sample: pictures (data URIs), key, lines of (what, text), and whether it is right."""

    pictures: list[str]
    key: str
    lines: list[tuple[str, str]]
    right: bool | None = None


@dataclass(frozen=True)
class CardsBlock:
    """Samples side by side."""

    title: str
    cards: list[Card]
    note: str = ""
    layout: ClassVar[str] = "cards"


@dataclass(frozen=True)
class Example:
    """A query and what the model put first for it."""

    query: Card
    answers: list[Card]


@dataclass(frozen=True)
class ExamplesBlock:
    """Queries, one a row."""

    title: str
    examples: list[Example]
    note: str = ""
    layout: ClassVar[str] = "examples"


Block = FigureBlock | TableBlock | CardsBlock | ExamplesBlock
