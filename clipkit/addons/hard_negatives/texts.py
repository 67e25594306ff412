"""The negatives of one caption: ready-made, made by rules, and padding where there are too few."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from clipkit.data.samples import Sample, derived


class Editor(Protocol):
    """What makes negatives from a caption: data/negatives' CaptionEditor."""

    def negatives(
        self, caption: str, count: int, rng: np.random.Generator, avoid: Sequence[str] = ()
    ) -> Sequence[Any]:
        """At most `count` different ones, each with its `text`."""
        ...


@dataclass
class TextNegatives:
    """Draws a sample's negatives. Pickled to the loader's workers.

    Attributes:
        count: K.
        ready_made: Whether the json field "negatives" is used.
        editor: Makes what is missing, or None.
    """

    count: int
    ready_made: bool
    editor: Editor | None

    def add_to(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Set texts and masks "negative". What `rng` gave others, and gives them, is unchanged."""
        own, caption = derived(rng, "negatives"), sample.texts["text"][0]
        found = self._ready_made(sample, own) if self.ready_made else []
        if self.editor is not None and len(found) < self.count:
            avoid = [*sample.texts["text"], *found]
            made = self.editor.negatives(caption, self.count - len(found), own, avoid)
            found += [negative.text for negative in made]
        missing = self.count - len(found)
        sample.texts["negative"] = found + [caption] * missing
        sample.masks["negative"] = [True] * len(found) + [False] * missing
        return sample

    def _ready_made(self, sample: Sample, rng: np.random.Generator) -> list[str]:
        """At most `count` of the json member's, different from each other and from captions."""
        listed = sample.meta.get("negatives")
        taken = {plain(caption) for caption in sample.texts["text"]}
        usable = []
        for text in listed if isinstance(listed, list) else []:
            if isinstance(text, str) and plain(text) and plain(text) not in taken:
                taken.add(plain(text))
                usable.append(text)
        return [usable[i] for i in rng.permutation(len(usable))[: self.count]]


def plain(text: str) -> str:
    """Words alone: captions that differ in case, space or punctuation are the same."""
    return re.sub(r"[\W_]+", " ", text.casefold()).strip()
