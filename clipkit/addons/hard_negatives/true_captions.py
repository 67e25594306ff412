"""Negative captions that are true: they say what another image of the global batch shows.

Shapes: b rows of this rank, B of all ranks, K negatives of each, C captions of an image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from clipkit.contracts import Batch, text_keys
from clipkit.data.negatives.edits import meaning
from clipkit.dist.collectives import all_gather

_MEANINGS, _TRUE = "negative_meanings", "true_meanings"
_CAPTIONS = 8  # of an image that are told apart; COCO has 5


def meaning_keys(negatives: Sequence[str], captions: Sequence[str]) -> dict[str, Tensor]:
    """Extras of a sample: (K,) and (C,) int64, equal for texts that say the same.

    Args:
        negatives: Of the sample.
        captions: All true ones, one at least; the first C count.
    """
    true = [*captions[:_CAPTIONS], *[captions[0]] * (_CAPTIONS - len(captions))]
    return {_MEANINGS: _keys(negatives), _TRUE: _keys(true)}


def _keys(texts: Sequence[str]) -> Tensor:
    digests = [hashlib.blake2b(meaning(t).encode(), digest_size=8).digest() for t in texts]
    return torch.tensor([int.from_bytes(d, "big", signed=True) for d in digests])


def mask_true_captions(batch: Batch, world_size: int, *, both_ways: bool) -> Batch:
    """Clear masks["negative"] where the negative equals a caption on any rank.

    Captions are compared as tokens, so one that differs beyond the context length is equal. Where
    the batch has the extras of `meaning_keys` these are compared too, with all captions of each
    image, and taken out of the batch. All ranks call this together.

    Args:
        batch: Of this rank, with texts "text" and "negative".
        world_size: Number of ranks.
        both_ways: Captions are negatives too: clear masks["text"] where the caption equals a
            negative. That mask is of columns alone; a caption's own pair stays.
    """
    captions, negatives = text_keys(batch.texts["text"]), text_keys(batch.texts["negative"])
    masks = dict(batch.masks)
    masks["negative"] = masks["negative"] & ~torch.isin(negatives, all_gather(captions, world_size))
    extras = dict(batch.extras)
    meanings, true = extras.pop(_MEANINGS, None), extras.pop(_TRUE, None)
    if meanings is not None and true is not None:
        masks["negative"] &= ~torch.isin(meanings, all_gather(true, world_size))
    if both_ways:
        masks["text"] = ~torch.isin(captions, all_gather(negatives, world_size))
    return batch._replace(masks=masks, extras=extras)
