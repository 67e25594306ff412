"""Negatives of a caption, drawn from all that the rules find."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from clipkit.data.negatives.edits import Edit, apply, plain
from clipkit.data.negatives.reading import Caption
from clipkit.data.negatives.replace import digits, replacements
from clipkit.data.negatives.swap import exchanges
from clipkit.errors import ConfigError

KINDS = ("object", "attribute", "color", "size", "number", "relation", "spatial", "order")
STYLES = ("replace", "swap")
_Choice = tuple[Edit, str]  # an edit, and one of its options


@dataclass(frozen=True)
class Negative:
    """A caption that is nearly right.

    Attributes:
        text: What it says.
        kind: What is wrong with it, of KINDS.
        style: How it was made: "replace" or "swap".
    """

    text: str
    kind: str
    style: str


class CaptionEditor:
    """Turns captions into near ones that say something else, by rules and a lexicon of its own.

    A caption on which the rules have no sure hold gives none. Settings are all it keeps: it can be
    pickled, and what it gives depends on its arguments alone.

    Args:
        kinds: Which kinds to make.
        styles: "replace": a term gives way to another of its group. "swap": two of one sort trade
            places.
        tagger: Also exchange adjectives that the lexicon does not know, told by TextBlob's
            part-of-speech tagger; at two thirds of the speed.
        forbid: Phrases that no negative may name, e.g. "red triangle", word for word.

    Raises:
        ConfigError: An unknown kind or style, or the tagger's package is missing.
    """

    def __init__(
        self,
        kinds: Sequence[str] = KINDS,
        styles: Sequence[str] = STYLES,
        *,
        tagger: bool = False,
        forbid: Sequence[str] = (),
    ) -> None:
        for given, known, name in ((kinds, KINDS, "kinds"), (styles, STYLES, "styles")):
            wrong = [word for word in given if word not in known]
            if wrong or not given:
                raise ConfigError(
                    f"negatives: {name} {list(given)}: choose some of {', '.join(known)}"
                )
        self.kinds, self.styles, self.tagger = frozenset(kinds), frozenset(styles), tagger
        self.forbid = tuple(phrase for phrase in map(plain, forbid) if phrase)
        if tagger:
            from clipkit.data.negatives.tagger import check_tagger

            check_tagger()

    def candidates(self, caption: str) -> list[Negative]:
        """All negatives of a caption, in a fixed order; none twice."""
        taken, found = {plain(caption)}, []
        for edit in self._edits(caption):
            for option in edit.options:
                negative = self._made(caption, edit, option, taken)
                if negative is not None:
                    found.append(negative)
        return found

    def negatives(
        self, caption: str, count: int, rng: np.random.Generator, avoid: Sequence[str] = ()
    ) -> list[Negative]:
        """Draw negatives: first one of each kind and style, in an order drawn, and so on.

        Args:
            caption: Of the image.
            count: At most so many.
            rng: Draws; the same state gives the same negatives.
            avoid: Texts that are true as well. Case, space and punctuation do not count.

        Returns:
            All different, and different from the caption and `avoid`.
        """
        taken = {plain(text) for text in (caption, *avoid)}
        sorts: dict[tuple[str, str], list[_Choice]] = {}
        for edit in self._edits(caption):
            sorts.setdefault((edit.kind, edit.style), []).extend((edit, o) for o in edit.options)
        groups = list(sorts.values())
        waiting = deque(_shuffled(groups[i], rng) for i in rng.permutation(len(groups)))
        found: list[Negative] = []
        while waiting and len(found) < count:
            drawn = waiting.popleft()
            made = (self._made(caption, edit, option, taken) for edit, option in drawn)
            negative = next((n for n in made if n is not None), None)
            if negative is not None:
                found.append(negative)
                waiting.append(drawn)
        return found

    def allows(self, text: str) -> bool:
        """Whether `text` names no forbidden phrase."""
        return not self.forbid or self._is_allowed(plain(text))

    def _is_allowed(self, words: str) -> bool:
        padded = f" {words} "
        return not any(f" {phrase} " in padded for phrase in self.forbid)

    def _made(self, caption: str, edit: Edit, option: str, taken: set[str]) -> Negative | None:
        """The negative, and None if there is such a one already or it is not allowed."""
        text = apply(caption, edit.changes(option))
        words = plain(text)
        if not words or words in taken or not self._is_allowed(words):
            return None
        taken.add(words)
        return Negative(text, edit.kind, edit.style)

    def _edits(self, caption: str) -> Iterator[Edit]:
        read = Caption(caption)
        makers: list[tuple[str, Callable[[Caption], Iterator[Edit]]]] = [
            ("swap", exchanges),
            ("replace", replacements),
            ("replace", digits),
        ]
        if self.tagger:
            from clipkit.data.negatives.tagger import tagged_exchanges

            makers.append(("swap", tagged_exchanges))
        for style, make in makers:
            if style in self.styles:
                yield from (edit for edit in make(read) if edit.kind in self.kinds)


def _shuffled(choices: list[_Choice], rng: np.random.Generator) -> Iterator[_Choice]:
    for i in rng.permutation(len(choices)):
        yield choices[i]
