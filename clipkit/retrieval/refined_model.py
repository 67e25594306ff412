"""open_clip's models with refined features, wherever open_clip asks for features.

Shapes: n items, D embed dim.
"""

from __future__ import annotations

from typing import Any

import open_clip
from torch import Tensor

from clipkit.retrieval.refinement import Refinement


def refine_model(model: Any, refinements: list[Refinement]) -> None:
    """Make an open_clip model give refined features: fp32, of unit length whatever is asked for."""
    model.__class__ = _REFINED[type(model)]
    model.refinements = refinements


class _Refined:
    """A mixin for open_clip's classes."""

    refinements: list[Refinement]

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """(n, D) fp32 unit."""
        rows: Tensor = super().encode_image(image, normalize=True)  # type: ignore[misc]
        for refinement in self.refinements:
            rows = refinement.image(rows.float())
        return rows

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """(n, D) fp32 unit."""
        rows: Tensor = super().encode_text(text, normalize=True)  # type: ignore[misc]
        for refinement in self.refinements:
            rows = refinement.text(rows.float())
        return rows


class _RefinedCLIP(_Refined, open_clip.CLIP):
    """open_clip's CLIP with refined features."""


class _RefinedCustomTextCLIP(_Refined, open_clip.CustomTextCLIP):
    """open_clip's CustomTextCLIP with refined features."""


_REFINED: dict[type, type] = {
    open_clip.CLIP: _RefinedCLIP,
    open_clip.CustomTextCLIP: _RefinedCustomTextCLIP,
}
