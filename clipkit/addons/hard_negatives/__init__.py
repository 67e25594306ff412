"""Hard negatives: captions, and images, that are nearly right become further columns of the loss.

texts.py draws a caption's negatives, true_captions.py masks those that are true of another image of
the batch, pairs.py says which embeddings meet. The loss itself is whatever the run has. May import
what an add-on may; the rules that edit a caption are in data/negatives.
"""

from __future__ import annotations

from functools import cached_property
from typing import Literal

import numpy as np

from clipkit.addons.base import AddOn, Masters
from clipkit.addons.hard_negatives.pairs import harden
from clipkit.addons.hard_negatives.texts import TextNegatives
from clipkit.contracts import Pair
from clipkit.data.samples import Sample
from clipkit.errors import ConfigError


class HardNegatives(AddOn):
    """Negative captions as columns (NegCLIP, https://arxiv.org/abs/2210.01936).

    A sample's negatives are texts "negative" (K each, padded with the caption itself, masked).

    Args:
        count: Negatives of each caption, K.
        source: rules: made from the caption. json: drawn from the sample's json field "negatives".
            both: ready-made ones first.
    """

    def __init__(
        self, *, count: int = 1, source: Literal["rules", "json", "both"] = "rules"
    ) -> None:
        if count < 1:
            raise ConfigError(f"addons.hard_negatives.count={count}: choose at least 1")
        self.count, self.source = count, source

    @cached_property
    def texts(self) -> TextNegatives:
        """Draws captions."""
        editor = None
        if self.source != "json":
            from clipkit.data.negatives import CaptionEditor

            editor = CaptionEditor()
        return TextNegatives(self.count, ready_made=self.source != "rules", editor=editor)

    def start(self, strategy: Masters) -> None:
        """A bad setting is reported here, not by a worker."""
        self.texts  # noqa: B018

    def sample(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Draw this caption's negatives."""
        return self.texts.add_to(sample, rng)

    def pairs(self, pairs: list[Pair]) -> list[Pair]:
        """Columns for every pair whose text is "text"."""
        return harden(pairs)


PART = HardNegatives
