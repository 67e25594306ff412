"""Features refined by what a memory holds near them: by trained heads, or by a plain mean.

Shapes: n queries, k neighbours each, D embed dim.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.addons.retrieval_fusion.head import FusionHeads, FusionSettings
from clipkit.errors import CheckpointError
from clipkit.retrieval.memory import Memory

Sides = Literal["both", "image", "text"]
_BLOCK = 1024  # queries searched and refined at once


class _Retrieved:
    """What both refinements share: which sides are refined, and their neighbours."""

    def __init__(
        self,
        memory: Memory,
        settings: FusionSettings,
        *,
        sides: Sides = "both",
        max_similarity: float | None = None,
    ) -> None:
        if memory.dim != settings.dim:
            raise CheckpointError(
                f"{memory.name}: a memory of {memory.dim} dimensions, the features have "
                f"{settings.dim}; build it with this model"
            )
        self.memory, self.settings = memory, settings
        self.sides, self.max_similarity = sides, max_similarity

    @property
    def name(self) -> str:
        """What is done, with all its parameters, and the memory's identity."""
        s = self.settings
        near = "" if self.max_similarity is None else f", max_similarity={self.max_similarity}"
        cell = f"search={s.search}, fusion={s.fusion}, k={s.k}, sides={self.sides}{near}"
        return f"{self._kind()}({cell}, memory={self.memory.name})"

    def image(self, features: Tensor) -> Tensor:
        """(n, D) unit -> (n, D) unit."""
        return self._refined("image", features)

    def text(self, features: Tensor) -> Tensor:
        """(n, D) unit -> (n, D) unit, each text on its own."""
        return self._refined("text", features)

    def _kind(self) -> str:
        raise NotImplementedError

    def _of(self, side: str, query: Tensor, neighbours: Tensor, mask: Tensor) -> Tensor:
        raise NotImplementedError

    @torch.no_grad()
    def _refined(self, side: str, features: Tensor) -> Tensor:
        if self.sides not in ("both", side) or not len(features):
            return features
        return torch.cat([self._block(side, part) for part in features.split(_BLOCK)])

    def _block(self, side: str, query: Tensor) -> Tensor:
        s = self.settings
        _, rows = self.memory.search(
            query, s.searched(side), s.k, max_similarity=self.max_similarity
        )
        neighbours, mask = neighbours_of(self.memory, s.fused(side), rows)
        device = query.device
        return self._of(side, query, neighbours.to(device), mask.to(device)).to(query.dtype)


def neighbours_of(memory: Memory, side: str, rows: Tensor) -> tuple[Tensor, Tensor]:
    """(n, k, D) features of rows and (n, k) bool, False where there is none of that side."""
    features = memory.features(side, rows)
    return features, features.any(dim=-1)


class Fusion(_Retrieved):
    """Trained heads over a memory's neighbours (RECO, https://arxiv.org/abs/2306.07196).

    Args:
        heads: Of a checkpoint (`heads_of`), or a copy of those in training.
        memory: Built with the towers of the features; may be another, or larger, than in training.
        sides: Which features are refined; the others stay.
        max_similarity: Neighbours more similar to the query than this are passed over.
    """

    def __init__(
        self,
        heads: FusionHeads,
        memory: Memory,
        *,
        sides: Sides = "both",
        max_similarity: float | None = None,
    ) -> None:
        super().__init__(memory, heads.settings, sides=sides, max_similarity=max_similarity)
        self.heads = heads.eval()
        digest = hashlib.sha256()
        for name, tensor in sorted(heads.state_dict().items()):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        self._digest = digest.hexdigest()[:12]

    def _kind(self) -> str:
        return f"fusion {self._digest}"

    def _of(self, side: str, query: Tensor, neighbours: Tensor, mask: Tensor) -> Tensor:
        layer = self.heads.layer(side).to(query.device)
        return layer(query.float(), neighbours, mask)


class Prototype(_Retrieved):
    """Nothing trained: a feature becomes the mean of its retrieved neighbours, unit again.

    By default a text becomes the mean of the images of its nearest texts. A feature without
    neighbours stays.

    Args:
        memory: Built with the towers of the features.
        k: Neighbours.
        sides: Which features are replaced.
        max_similarity: Neighbours more similar to the query than this are passed over.
        search, fusion: As in FusionSettings.
    """

    def __init__(
        self,
        memory: Memory,
        k: int = 10,
        *,
        sides: Sides = "text",
        max_similarity: float | None = None,
        search: Literal["uni", "cross"] = "uni",
        fusion: Literal["cross", "uni"] = "cross",
    ) -> None:
        settings = FusionSettings(memory.dim, k, num_heads=1, search=search, fusion=fusion)
        super().__init__(memory, settings, sides=sides, max_similarity=max_similarity)

    def _kind(self) -> str:
        return "prototype"

    def _of(self, side: str, query: Tensor, neighbours: Tensor, mask: Tensor) -> Tensor:
        mean = F.normalize((neighbours * mask[..., None]).sum(dim=1), dim=-1)
        return torch.where(mask.any(dim=1, keepdim=True), mean, query.float())
