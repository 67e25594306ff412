"""Negative captions that are true: they say what another image of the global batch shows.

Shapes: b rows of this rank, B of all ranks, K negatives of each.
"""

from __future__ import annotations

import torch

from clipkit.contracts import Batch, text_keys
from clipkit.dist.collectives import all_gather


def mask_true_captions(batch: Batch, world_size: int, *, both_ways: bool) -> Batch:
    """Clear masks["negative"] where the negative equals a caption on any rank.

    Captions are compared as tokens, so one that differs beyond the context length is equal. All
    ranks call this together.

    Args:
        batch: Of this rank, with texts "text" and "negative".
        world_size: Number of ranks.
        both_ways: Captions are negatives too: clear masks["text"] where the caption equals a
            negative. That mask is of columns alone; a caption's own pair stays.
    """
    captions, negatives = text_keys(batch.texts["text"]), text_keys(batch.texts["negative"])
    masks = dict(batch.masks)
    masks["negative"] = masks["negative"] & ~torch.isin(negatives, all_gather(captions, world_size))
    if both_ways:
        masks["text"] = ~torch.isin(captions, all_gather(negatives, world_size))
    return batch._replace(masks=masks)
