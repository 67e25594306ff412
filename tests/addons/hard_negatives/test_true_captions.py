"""Negatives that are true of another image, of this rank or of another."""

from __future__ import annotations

import torch

from clipkit.addons.hard_negatives.true_captions import mask_true_captions, meaning_keys
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


def test_other_wordings_of_the_batch_are_no_negatives() -> None:
    captions = [["a cat and a dog"], ["one bird", "a red ring", "a blue ring"]]
    negatives = [
        ["a blue ring", "a dog and a bird"],
        ["A dog, and a cat.", "a dog and a cat riding"],
    ]
    samples = [meaning_keys(n, c) for n, c in zip(negatives, captions)]
    extras = {name: torch.stack([s[name] for s in samples]) for name in samples[0]}
    texts = {"text": torch.arange(2)[:, None, None], "negative": torch.arange(2, 6).view(2, 2, 1)}
    mask = torch.ones(2, 2, dtype=torch.bool)
    kept = torch.arange(2)
    batch = Batch({}, texts, kept, {"negative": mask}, {**extras, "other": kept})
    found = mask_true_captions(batch, 1, both_ways=False)
    assert found.masks["negative"].tolist() == [[False, True], [False, True]]
    assert list(found.extras) == ["other"] and mask.all()


def test_of_many_captions_the_first_are_known() -> None:
    captions = [f"caption {i}" for i in range(20)]
    keys = meaning_keys(captions, captions)
    assert torch.equal(keys["true_meanings"], keys["negative_meanings"][:8])
    alone = meaning_keys(captions[:1], captions[:1])
    assert (alone["true_meanings"] == alone["negative_meanings"]).sum() == 8


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
