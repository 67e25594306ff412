"""Chunks cover the batch once, whatever the sizes."""

from __future__ import annotations

import pytest
import torch

from clipkit.engine.chunks import split
from tests.tiny_model import tiny_batch


@pytest.mark.parametrize("size", [None, 1, 3, 4, 10, 99])
@pytest.mark.parametrize("text_size", [None, 1, 4, 5, 99])
def test_every_row_once(size: int | None, text_size: int | None) -> None:
    batch = tiny_batch(10, negatives=2)
    chunks = split(batch, size, text_size)
    views = [c.batch.images["image"] for c in chunks if c.batch.images]
    texts = [c.batch.texts["negative"] for c in chunks if c.batch.texts]
    masks = [c.batch.masks["negative"] for c in chunks if c.batch.masks]
    assert torch.equal(torch.cat(views), batch.images["image"])
    assert torch.equal(torch.cat(texts), batch.texts["negative"])
    assert torch.equal(torch.cat(masks), batch.masks["negative"])
    assert chunks[-1].batch.images and chunks[-1].batch.texts, "the last reaches every parameter"


def test_rows_of_outputs() -> None:
    chunks = split(tiny_batch(10), 4, 8)
    assert [c.image_rows for c in chunks] == [slice(0, 4), slice(4, 8), slice(0, 0), slice(8, 10)]
    assert [c.text_rows for c in chunks] == [slice(0, 0), slice(0, 0), slice(0, 8), slice(8, 10)]
    assert chunks[-1].rows("text") == slice(8, 10)
