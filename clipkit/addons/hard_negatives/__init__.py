"""Hard negatives: captions and images that are nearly right become further columns of the loss.

texts.py draws a caption's negatives, true_captions.py masks those that are true of another image of
the batch, pairs.py says which embeddings meet. The loss is whatever the run has. The rules that
edit a caption, and the file of what they must not name, are matters of data/negatives; that near
neighbours share a batch is one of data.hard_batches. May import what an add-on may.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch.distributed as torch_dist

from clipkit.addons.base import AddOn, StepView
from clipkit.addons.hard_negatives.pairs import Form, harden
from clipkit.addons.hard_negatives.texts import TextNegatives
from clipkit.addons.hard_negatives.true_captions import mask_true_captions
from clipkit.contracts import Batch, Pair
from clipkit.data.negatives import KINDS, CaptionEditor
from clipkit.data.negatives.editor import STYLES
from clipkit.data.negatives.phrases import read_phrases
from clipkit.data.samples import Sample
from clipkit.errors import ConfigError

if TYPE_CHECKING:
    from clipkit.towers.build import Towers

_VIEW = "negative_image"


class HardNegatives(AddOn):
    """Negative captions as columns of the images: NegCLIP, https://arxiv.org/abs/2210.01936.

    A sample's negatives are its texts "negative", K of them, padded with the caption itself, which
    is masked. Never a column: a caption of an image of the global batch, also with what "and" joins
    exchanged. Negative images are the view "negative_image", see `data.image_members`.

    Args:
        count: Negatives of each caption, K.
        source: rules: made from the caption. json: drawn from the sample's json field "negatives".
            both: ready-made ones first.
        kinds: What the rules change; null: all.
        styles: How: by another word, or two words of the caption exchanged; null: both.
        tagger: Whether a part-of-speech tagger helps the rules.
        tags: Ready-made negatives whose entry in "negative_tags" is one of these; null: all.
        forbid: Phrases no negative may name, such as combinations held out of training.
        forbid_file: A file of more: one a line, # before a comment, or a JSON file's list
            "held_out".
        weight: w of (1 - w) * loss without negatives + w * loss with them, 0 to 1.
        image_negatives: Negative images are columns of the captions; the loss is then the mean of
            both directions' NegCLIP.
        triplet: TripletCLIP, https://arxiv.org/abs/2411.02545: the negative image and its caption,
            the first of "negatives", are a second pair. The loss is the sum of both.
    """

    def __init__(
        self,
        *,
        count: int = 1,
        source: Literal["rules", "json", "both"] = "rules",
        kinds: list[
            Literal[
                "object", "attribute", "color", "size", "number", "relation", "spatial", "order"
            ]
        ]
        | None = None,
        styles: list[Literal["replace", "swap"]] | None = None,
        tagger: bool = False,
        tags: list[str] | None = None,
        forbid: tuple[str, ...] = (),
        forbid_file: str | None = None,
        weight: float = 1.0,
        image_negatives: bool = False,
        triplet: bool = False,
    ) -> None:
        self.count, self.source, self.tags, self.weight = count, source, tags, weight
        self.kinds, self.styles, self.tagger = kinds, styles, tagger
        self.forbid, self.forbid_file = tuple(forbid), forbid_file
        self.form: Form = "triplet" if triplet else "both" if image_negatives else "texts"
        self._check(image_negatives and triplet)
        self._logged, self._remarks = False, list[str]()

    def _check(self, two_forms: bool) -> None:
        wrong, lists = "", {"kinds": self.kinds, "styles": self.styles, "tags": self.tags}
        empty = [name for name, given in lists.items() if given == []]
        if empty:
            wrong = f"{empty[0]}: the list is empty; leave it out for all"
        elif self.count < 1:
            wrong = f"count={self.count}: choose at least 1"
        elif not 0 <= self.weight <= 1:
            wrong = f"weight={self.weight}: choose 0 <= weight <= 1"
        elif two_forms:
            wrong = "image_negatives and triplet are two forms; choose one"
        elif self.form == "triplet" and self.count != 1:
            wrong = f"count={self.count}: a triplet has one negative caption; set count: 1"
        elif self.form == "triplet" and self.source != "json":
            wrong = (
                f"source={self.source}: only a ready-made caption is true of the negative image of "
                f"a triplet; set source: json"
            )
        elif self.source == "rules" and self.tags is not None:
            wrong = "tags choose among ready-made negatives; set source: json or both"
        elif self.source == "json" and (self.kinds or self.styles or self.tagger):
            wrong = "kinds, styles and tagger are of rules; set source: rules or both"
        elif self.form == "triplet" and self.tags is not None:
            wrong = "tags: a triplet takes the first negative whatever its tag; leave tags out"
        if wrong:
            raise ConfigError(f"addons.hard_negatives.{wrong}")

    @cached_property
    def texts(self) -> TextNegatives:
        """Draws captions."""
        forbid = self.forbid
        if self.forbid_file is not None:
            forbid += read_phrases(self.forbid_file, "addons.hard_negatives.forbid_file")
        editor = None
        if self.source != "json" or forbid:
            editor = CaptionEditor(
                self.kinds or KINDS, self.styles or STYLES, tagger=self.tagger, forbid=forbid
            )
        return TextNegatives(
            self.count,
            source=self.source,
            tags=self.tags,
            editor=editor,
            first_or_none=self.form == "triplet",
        )

    def prepare(self, towers: Towers) -> None:
        """A missing file or a bad rule is reported here and not by a worker."""
        if self.weight:
            self.texts  # noqa: B018

    def sample(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Draw this caption's negatives."""
        if not self.weight:
            sample.images.pop(_VIEW, None)
            return sample
        return self.texts.add_to(sample, rng)

    def transform_batch(self, batch: Batch) -> Batch:
        """Mask negatives that are the caption of an image of the global batch."""
        if not self.weight:
            return batch
        if self.form != "texts" and _VIEW not in batch.images:
            raise ConfigError(
                "addons.hard_negatives: samples have no negative image; name its member, e.g. "
                "data.image_members: {negative_image: [neg.jpg]}"
            )
        world_size = torch_dist.get_world_size() if torch_dist.is_initialized() else 1
        return mask_true_captions(batch, world_size, both_ways=self.form == "triplet")

    def pairs(self, pairs: list[Pair]) -> list[Pair]:
        """Columns for every pair with an unrefined side."""
        return harden(pairs, self.weight, self.form)

    def metrics(self, result: StepView) -> dict[str, float]:
        """negatives: share of the global batch's K negatives a sample that are valid."""
        if not self.weight:
            return {}
        valid = result.features.masks["negative"].double()
        share = float(result.features.sum(valid.mean())) / result.features.world_size
        if not self._logged and not share:
            self._remarks = [
                f"addons.hard_negatives: no caption of step {result.step + 1} has a negative; "
                f"compare source, kinds, styles and tags with the data"
            ]
        self._logged = True
        return {"negatives": share}

    def remarks(self) -> list[str]:
        """No negatives at all at the first logged step: a mistyped tag, most likely."""
        told, self._remarks = self._remarks, []
        return told


PART = HardNegatives
