"""Changes of a caption: what is put where, with articles and capitals that fit."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from clipkit.data.negatives.lexicon import lexicon
from clipkit.data.negatives.reading import Caption

_PLAIN = re.compile(r"[\W_]+")


class Change(NamedTuple):
    """Characters from `start` to `stop` become `text`."""

    start: int
    stop: int
    text: str


@dataclass(frozen=True)
class Edit:
    """One way to make negatives of a caption.

    Attributes:
        kind, style: As of a Negative.
        options: Texts, one of which is chosen.
        changes: An option -> what becomes of the caption.
    """

    kind: str
    style: str
    options: Sequence[str]
    changes: Callable[[str], tuple[Change, ...]]


def apply(text: str, changes: Sequence[Change]) -> str:
    """The caption after the changes, which do not overlap."""
    for start, stop, new in sorted(changes, reverse=True):
        text = text[:start] + new + text[stop:]
    return text


def plain(text: str) -> str:
    """Words alone: texts that differ in case, space or punctuation are the same."""
    return _PLAIN.sub(" ", text.casefold()).strip()


def meaning(text: str) -> str:
    """Equal for texts that say the same in another order: "a cat and a dog", "a dog and a cat"."""
    return " and ".join(sorted(plain(text).split(" and ")))


def with_article(word: str) -> str:
    """ "a" or "an", by how `word` is likely said."""
    word = word.lower()
    classes = lexicon().classes
    if word.startswith(tuple(classes["a"])):
        return "a"
    return "an" if word[:1] in "aeiou" or word.startswith(tuple(classes["an"])) else "a"


def put(caption: Caption, first: int, last: int, text: str) -> Change:
    """Put `text` in the place of words `first` to `last`; an article before them follows."""
    start, stop = caption.span(first, last)
    old = caption.text[start:stop]
    if old.isupper() and len(old) > 1:
        text = text.upper()
    elif old[:1].isupper() and first == 0:
        text = text[:1].upper() + text[1:]
    if caption.word(first - 1) in ("a", "an") and caption.joined[first - 1]:
        start, end = caption.span(first - 1, first - 1)
        article, before = with_article(text), caption.text[start:end]
        article = article.upper() if before.isupper() and len(text) > 1 and text.isupper() else (
            article.capitalize() if before[0].isupper() else article
        )  # fmt: skip
        text = article + caption.text[end : caption.starts[first]] + text
    return Change(start, stop, text)


def exchange(caption: Caption, one: tuple[int, int], two: tuple[int, int]) -> tuple[Change, ...]:
    """Exchange two runs of words (first, last), each of which takes the other's capital."""
    texts = [caption.text[slice(*caption.span(*run))] for run in (one, two)]
    opening = texts[0].split(" ", 1)[0]
    if one[0] == 0 and (len(opening) == 1 or not opening.isupper()):
        texts[0] = texts[0][:1].lower() + texts[0][1:]
    return put(caption, *one, texts[1]), put(caption, *two, texts[0])
