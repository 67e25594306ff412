"""Negatives that are true of another image, of this rank or of another."""

from __future__ import annotations

import torch

from clipkit.addons.hard_negatives.true_captions import mask_true_captions
from clipkit.contracts import Batch
from tests.addons.hard_negatives.cells import SIZE, hard_batch, masked_on


def test_a_caption_of_the_batch_is_no_negative() -> None:
    texts = {
        "text": torch.tensor([[[1, 2]], [[3, 4]]]),
        "negative": torch.tensor([[[3, 4], [5, 6]], [[4, 3], [3, 4]]]),
    }
    mask = torch.tensor([[True, True], [True, False]])
    batch = Batch({}, texts, torch.arange(2), {"negative": mask, "other": mask})
    found = mask_true_captions(batch, 1, both_ways=False)
    assert found.masks["negative"].tolist() == [[False, True], [True, False]]
    assert found.masks["other"] is mask and "text" not in found.masks
    assert mask.all(dim=1).tolist() == [True, False], "the batch that came in is not changed"
    both = mask_true_captions(batch, 1, both_ways=True)
    assert both.masks["text"].tolist() == [[True], [False]]


def test_the_caption_may_be_on_another_rank(ranks) -> None:  # type: ignore[no-untyped-def]
    for both_ways in (False, True):
        before = hard_batch("triplet" if both_ways else "texts").masks["negative"]
        parts = ranks(2).run(masked_on, both_ways)
        negative = torch.cat([p["negative"] for p in parts])
        changed = (negative != before).nonzero().tolist()
        expected = [place for place in ([0, 0], [SIZE - 2, 0]) if before[tuple(place)]]
        assert changed == expected and expected
        if both_ways:
            text = torch.cat([p["text"] for p in parts])
            assert (~text).nonzero()[:, 0].tolist() == [3, SIZE - 1]
