"""DualEncoder: open_clip's features under named views and texts."""

from __future__ import annotations

import copy

import pytest
import torch

from clipkit.contracts import Batch
from clipkit.towers.build import build_towers, lock_towers
from clipkit.towers.dual import DualEncoder
from tests.tiny_model import MODEL_CFG, tiny_batch, tiny_model


@pytest.mark.parametrize("custom_text", [False, True])
def test_features_are_open_clips(custom_text: bool) -> None:
    torch.manual_seed(0)
    towers = build_towers({**MODEL_CFG, "custom_text": custom_text})
    original = copy.deepcopy(towers.clip).eval()
    model = DualEncoder(towers.clip, mean=towers.mean, std=towers.std).eval()
    batch = tiny_batch(3, negatives=2)
    out = model(batch)
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (towers.mean, towers.std))
    pixels = (batch.images["image"] / 255 - mean) / std
    wanted = original.encode_image(pixels, normalize=True)
    torch.testing.assert_close(out.embeddings["image"][:, 0], wanted, rtol=0, atol=1e-5)
    wanted = original.encode_text(batch.texts["negative"].flatten(0, 1), normalize=True)
    torch.testing.assert_close(out.embeddings["negative"].flatten(0, 1), wanted, rtol=0, atol=1e-6)
    assert out.logit_scale.shape == () and out.logit_scale.item() == pytest.approx(
        1 / 0.07, rel=1e-5
    )
    assert out.logit_bias is None


def test_float_images_are_taken_as_they_are() -> None:
    model = tiny_model().eval()
    uint8 = tiny_batch(2)
    floats = uint8._replace(images={"image": (uint8.images["image"] - model.mean) / model.std})
    assert torch.equal(model(uint8).embeddings["image"], model(floats).embeddings["image"])


def test_known_outputs_are_not_encoded_again() -> None:
    model = tiny_model()
    lock_towers(model.towers, ("image",), 0)
    assert model.frozen_towers == {"image"}
    model.train()
    assert not model.towers.visual.training and model.towers.transformer.training
    batch = tiny_batch(2)
    first = model(batch)
    assert set(first.frozen) == {"image"} and not first.frozen["image"].requires_grad
    model.towers.visual.forward = None  # type: ignore[assignment]
    again = model(batch._replace(known=first.frozen))
    assert torch.equal(again.embeddings["image"], first.embeddings["image"])


def test_the_whole_text_tower_can_be_frozen() -> None:
    model = tiny_model()
    lock_towers(model.towers, ("text",), 0)
    assert model.frozen_towers == {"text"}


def test_bf16_features_leave_as_fp32() -> None:
    out = tiny_model(autocast=torch.bfloat16)(tiny_batch(2))
    assert out.embeddings["image"].dtype == torch.float32
    torch.testing.assert_close(out.embeddings["text"].norm(dim=-1), torch.ones(2, 1))


def test_a_batch_of_texts_alone() -> None:
    batch = tiny_batch(2)
    out = tiny_model()(Batch({}, batch.texts, batch.ids))
    assert set(out.embeddings) == {"text"}
