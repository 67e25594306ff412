"""Exchanges of words that the lexicon does not know, told by a part-of-speech tagger.

TextBlob's PatternTagger works offline and takes verbs for plural nouns ("chases"), so it is asked
for adjectives, for nouns in the singular, and only where the lexicon has nothing.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from clipkit.data.negatives.edits import Edit, exchange
from clipkit.data.negatives.reading import Caption
from clipkit.errors import ConfigError

_NOUNS = ("NN", "NNS")


def check_tagger() -> None:
    """Do nothing if the tagger can be used.

    Raises:
        ConfigError: Its package is missing.
    """
    if find_spec("textblob") is None:
        raise ConfigError("negatives: tagger=true needs textblob: pip install 'clipkit[tagger]'")


@functools.cache
def _tagger() -> Any:
    from textblob.en.taggers import PatternTagger

    return PatternTagger()


def tagged_exchanges(caption: Caption) -> Iterator[Edit]:
    """Exchange unknown adjectives of two things: "a shaggy dog and a bulky sofa"."""
    tags = _tags(caption)
    found = [
        (i, i + 1)
        for i in range(len(tags) - 1)
        if tags[i] == "JJ" and tags[i + 1] in _NOUNS and caption.joined[i] and _is_free(caption, i)
    ]
    for (one, noun), (two, other) in itertools.combinations(found, 2):
        stems = {caption.words[i].rstrip("s") for i in (noun, other)}
        if caption.words[one] != caption.words[two] and len(stems) == 2:
            runs = (one, one), (two, two)
            yield Edit("attribute", "swap", [""], functools.partial(_exchanged, caption, runs))


def _exchanged(caption: Caption, runs: tuple[Any, Any], _: str) -> tuple[Any, ...]:
    return exchange(caption, *runs)


def _tags(caption: Caption) -> list[str]:
    """A tag for each word; "" where the tagger cuts words otherwise."""
    if any(not word.isascii() or not word.isalpha() for word in caption.words):
        kept = [word for word in caption.words if word.isascii() and word.isalpha()]
    else:
        kept = caption.words
    found = iter(_tagger().tag(" ".join(kept)))
    tags = []
    for word in caption.words:
        tag = next(found, ("", "")) if word.isascii() and word.isalpha() else ("", "")
        tags.append(tag[1] if tag[0] == word else "")
    return tags


def _is_free(caption: Caption, i: int) -> bool:
    """Whether the lexicon says nothing of word `i`, and it is a plain adjective in its place."""
    taken = any(t.first <= i <= t.last for t in caption.terms)
    return not (
        taken
        or caption.names[i]
        or caption.of(i, "closed")
        or caption.is_denied(i)
        or caption.word(i) in ("first", "last", "next", "same", "other", "own", "such", "more")
    )
