"""The negatives of one caption: ready-made, made by rules, and padding where there are too few."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from clipkit.addons.hard_negatives.true_captions import meaning_keys
from clipkit.data.bad_samples import BadSample
from clipkit.data.captions import CaptionRule, clean
from clipkit.data.negatives import CaptionEditor
from clipkit.data.negatives.edits import plain
from clipkit.data.samples import Sample, derived

_OTHER_CAPTIONS = CaptionRule(("json.caption", "json.captions"))


@dataclass
class TextNegatives:
    """Draws a sample's negatives. Pickled to the loader's workers.

    Attributes:
        count: K.
        source: rules, json, or both: the json member's first, rules for what is missing.
        tags: Ready-made ones with one of these tags; None: all.
        editor: Makes negatives and says which are allowed; None: ready-made ones, all allowed.
        first_or_none: Take the first ready-made one, and no sample without it.
    """

    count: int
    source: Literal["rules", "json", "both"] = "json"
    tags: Collection[str] | None = None
    editor: CaptionEditor | None = None
    first_or_none: bool = False

    def add_to(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Set texts and masks "negative". What `rng` gives others is unchanged.

        Raises:
            BadSample: Its negative is to be the first, and that is missing or unusable.
        """
        own, caption = derived(rng, "negatives"), sample.texts["text"][0]
        avoid = [caption, *sample.captions, *_OTHER_CAPTIONS.every({}, sample.meta)]
        found = [] if self.source == "rules" else self._ready_made(sample, own, avoid)
        if self.editor is not None and self.source != "json" and len(found) < self.count:
            wanted = self.count - len(found)
            made = self.editor.negatives(caption, wanted, own, [*avoid, *found])
            found += [negative.text for negative in made]
        missing = self.count - len(found)
        sample.texts["negative"] = found + [caption] * missing
        sample.masks["negative"] = [True] * len(found) + [False] * missing
        sample.extras |= meaning_keys(sample.texts["negative"], avoid)
        return sample

    def _ready_made(
        self, sample: Sample, rng: np.random.Generator, avoid: Sequence[str]
    ) -> list[str]:
        """At most `count` of the json member's, different from each other and from `avoid`."""
        listed = _strings(sample.meta, "negatives")
        if self.first_or_none:
            found = self._usable(listed[:1], avoid)
            if not found:
                raise BadSample("no_negative")
            return found
        if self.tags is not None:
            tags = _strings(sample.meta, "negative_tags")
            listed = [text for text, tag in zip(listed, tags) if tag in self.tags]
        usable = self._usable(listed, avoid)
        return [usable[i] for i in rng.permutation(len(usable))[: self.count]]

    def _usable(self, texts: Sequence[str | None], avoid: Sequence[str]) -> list[str]:
        taken, usable = {plain(caption) for caption in avoid}, []
        for text in texts:
            try:
                text = clean(text or "")
            except BadSample:
                continue
            words = plain(text)
            if words and words not in taken and (self.editor is None or self.editor.allows(text)):
                taken.add(words)
                usable.append(text)
        return usable


def _strings(meta: dict[str, Any], key: str) -> list[str | None]:
    """A json member's list, with None for what is no string: two lists are read side by side."""
    listed = meta.get(key)
    found = listed if isinstance(listed, list) else []
    return [entry if isinstance(entry, str) else None for entry in found]
