"""open_clip's own methods give refined features, in the order asked for."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.retrieval.refined_model import refine_model
from clipkit.retrieval.refinement import Refinement
from clipkit.towers.build import build_towers
from tests.tiny_model import MODEL_CFG

IMAGES = torch.linspace(-1, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16)
TEXTS = torch.tensor([[1, 2, 63, 0, 0, 0, 0, 0], [4, 5, 6, 63, 0, 0, 0, 0]])


class Add:
    """Adds to one dimension, another for texts, and makes it unit again."""

    def __init__(self, by: float) -> None:
        self.by = by

    @property
    def name(self) -> str:
        return f"add-{self.by}"

    def image(self, features: Tensor) -> Tensor:
        return self._at(features, 0)

    def text(self, features: Tensor) -> Tensor:
        return self._at(features, 1)

    def _at(self, features: Tensor, dimension: int) -> Tensor:
        change = torch.zeros_like(features)
        change[:, dimension] = self.by
        return F.normalize(features + change, dim=-1)


def tiny_clip(kind: type) -> Any:
    torch.manual_seed(0)
    if kind is open_clip.CLIP:
        return build_towers(MODEL_CFG).clip.eval()
    return open_clip.CustomTextCLIP(**MODEL_CFG).eval()


@pytest.mark.parametrize("kind", [open_clip.CLIP, open_clip.CustomTextCLIP])
@torch.no_grad()
def test_features_are_refined_in_order(kind: type) -> None:
    model = tiny_clip(kind)
    image, text = model.encode_image(IMAGES, normalize=True), model.encode_text(TEXTS, True)
    steps: list[Refinement] = [Add(1.0), Add(-0.3)]
    wanted_image, wanted_text = image, text
    for step in steps:
        wanted_image, wanted_text = step.image(wanted_image), step.text(wanted_text)
    refine_model(model, steps)
    assert kind in type(model).__mro__
    assert torch.equal(model.encode_image(IMAGES), wanted_image)
    assert torch.equal(model.encode_text(TEXTS), wanted_text)
    assert not torch.allclose(wanted_image, steps[0].image(steps[1].image(image)))


@torch.no_grad()
def test_they_are_unit_and_fp32_whatever_is_asked_for() -> None:
    model = tiny_clip(open_clip.CLIP).bfloat16()
    refine_model(model, [Add(1.0)])
    for normalize in (False, True):
        rows = model.encode_image(IMAGES.bfloat16(), normalize=normalize)
        assert rows.dtype == torch.float32
        assert torch.allclose(rows.norm(dim=-1), torch.ones(2), atol=1e-5)


@torch.no_grad()
def test_the_logits_of_open_clip_are_of_refined_features() -> None:
    model = tiny_clip(open_clip.CLIP)
    refine_model(model, [Add(1.0)])
    image_logits, _ = model.get_logits(IMAGES, TEXTS)
    rows, columns = model.encode_image(IMAGES), model.encode_text(TEXTS)
    assert torch.allclose(image_logits, model.logit_scale.exp() * rows @ columns.T, atol=1e-5)
