"""Batch, Features: slicing, lazy gathering."""

from __future__ import annotations

import torch

from clipkit.contracts import Features, base_name
from tests.tiny_model import tiny_batch


def test_a_chunk_is_a_slice_and_negatives_travel_along() -> None:
    batch = tiny_batch(6, negatives=3)
    part = batch.rows(2, 5)
    assert part.num_samples == 3
    assert torch.equal(part.ids, torch.tensor([2, 3, 4]))
    assert torch.equal(part.texts["negative"], batch.texts["negative"][2:5])
    assert torch.equal(part.masks["negative"], batch.masks["negative"][2:5])
    assert part._replace(extras={"x": part.ids}).extras["x"].shape == (3,)


def test_features_gather_once_and_know_their_rows() -> None:
    features = Features({"text": torch.ones(4, 2, 8)}, torch.tensor(1.0), rank=1, world_size=1)
    assert features.rows == slice(4, 8)
    assert features.all("text") is features.all("text")
    assert features.all_mask("text").all() and features.all_mask("text").shape == (4, 2)
    features.masks = {"text": torch.zeros(4, 2, dtype=torch.bool)}
    assert not features.all_mask("text").any()


def test_what_is_made_of_an_embedding_keeps_its_name_before_the_at() -> None:
    assert [base_name(n) for n in ("text@fused", "text", "image@a@b")] == ["text", "text", "image"]
