"""The trained part of retrieval fusion: one transformer layer per side over a query's neighbours.

Shapes: b queries, k neighbours each, D embed dim, H attention heads.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipkit.contracts import Batch, Outputs
from clipkit.errors import ConfigError

SIDES = ("image", "text")
FUSED = "@fused"
_OTHER = {"image": "text", "text": "image"}


@dataclass(frozen=True)
class FusionSettings:
    """What turns weights of heads into a function; JSON scalars.

    Attributes:
        dim: D of the towers.
        k: Neighbours of a query.
        num_heads: Attention heads; divides D.
        mlp_ratio: Width of the MLP over D.
        search: Neighbours are nearest in the query's own modality (uni) or in the other (cross).
        fusion: A neighbour is seen by its feature of the other modality (cross) or of the query's
            own (uni).

    Raises:
        ConfigError: A number is out of range, or num_heads does not divide D.
    """

    dim: int
    k: int = 10
    num_heads: int = 8
    mlp_ratio: float = 4.0
    search: Literal["uni", "cross"] = "uni"
    fusion: Literal["cross", "uni"] = "cross"

    def __post_init__(self) -> None:
        for name in ("dim", "k", "num_heads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"retrieval_fusion.{name}: {getattr(self, name)}; give 1 or more")
        if self.dim % self.num_heads:
            raise ConfigError(
                f"retrieval_fusion.num_heads: {self.num_heads} does not divide the embed dim "
                f"{self.dim} of the towers"
            )
        if int(self.dim * self.mlp_ratio) < 1:
            raise ConfigError(f"retrieval_fusion.mlp_ratio: {self.mlp_ratio} leaves no MLP")

    def searched(self, side: str) -> str:
        """Side of the memory in which neighbours of a query of `side` are found."""
        return side if self.search == "uni" else _OTHER[side]

    def fused(self, side: str) -> str:
        """Side of the memory whose features of them are fused."""
        return _OTHER[side] if self.fusion == "cross" else side

    def as_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


class FusionLayer(nn.Module):
    """A pre-norm transformer encoder layer without positions, read at the query's token.

    Only that token's output is computed. Projections onto the residual stream are zero at first, so
    a new layer changes nothing.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.attention_out = nn.Linear(dim, dim)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp_in = nn.Linear(dim, int(dim * mlp_ratio))
        self.mlp_out = nn.Linear(int(dim * mlp_ratio), dim)
        for last in (self.attention_out, self.mlp_out):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, query: Tensor, neighbours: Tensor, mask: Tensor) -> Tensor:
        """Refine queries by their neighbours.

        Args:
            query: (b, D) unit, fp32 or fp64.
            neighbours: (b, k, D) unit, in any order.
            mask: (b, k) bool, True where there is a neighbour.

        Returns:
            (b, D) unit, of the query's type; where a query has no neighbour, the query itself.
        """
        change = self._change(query, neighbours, mask).to(query.dtype)
        change = torch.where(mask.any(dim=1, keepdim=True), change, 0.0)
        # as a difference, so that no change leaves every bit, and has a gradient
        return query + (F.normalize(query + change, dim=-1) - F.normalize(query, dim=-1))

    def _change(self, query: Tensor, neighbours: Tensor, mask: Tensor) -> Tensor:
        """(b, D) what attention and MLP add to the query's token."""
        dtype = self.query.weight.dtype
        tokens = torch.cat([query[:, None].to(dtype), neighbours.to(dtype)], dim=1)  # (b, 1 + k, D)
        normed = self.attention_norm(tokens)
        keys, values = self.key_value(normed).chunk(2, dim=-1)
        seen = F.pad(mask, (1, 0), value=True)[:, None, None]  # the query always sees itself
        attended = F.scaled_dot_product_attention(
            self._split(self.query(normed[:, :1])), self._split(keys), self._split(values), seen
        )  # (b, H, 1, D / H)
        first = self.attention_out(attended.flatten(1))
        return first + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(tokens[:, 0] + first))))

    def _split(self, x: Tensor) -> Tensor:
        """(b, n, D) -> (b, H, n, D / H)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class FusionHeads(nn.Module):
    """A layer for each side; as a head of the model it adds "image@fused" and "text@fused".

    It reads extras "<side>_neighbours" (b, k, D) and "<side>_neighbours_mask" (b, k); a side
    without them passes unrefined.

    Args:
        settings: Shape of the layers, and what their inputs are.
        query_dropout: In training, share of queries (of those with neighbours) that a random
            direction replaces in their refined embedding; that then is known from the neighbours
            alone.
    """

    def __init__(self, settings: FusionSettings, query_dropout: float = 0.0) -> None:
        super().__init__()
        self.settings, self.query_dropout = settings, query_dropout
        shape = (settings.dim, settings.num_heads, settings.mlp_ratio)
        self.image, self.text = FusionLayer(*shape), FusionLayer(*shape)

    def forward(self, outputs: Outputs, batch: Batch) -> Outputs:
        """Add the refined embeddings of a chunk."""
        embeddings = dict(outputs.embeddings)
        for side in SIDES:
            name = f"{side}_neighbours"
            if side in embeddings and name in batch.extras:
                mask = batch.extras[f"{name}_mask"]
                query = self._query(embeddings[side][:, 0], mask)
                refined = self.layer(side)(query, batch.extras[name], mask)
                embeddings[side + FUSED] = refined[:, None]  # (b, 1, D)
        return outputs._replace(embeddings=embeddings)

    def layer(self, side: str) -> FusionLayer:
        """Of "image" or "text"."""
        return self.image if side == "image" else self.text

    def _query(self, features: Tensor, mask: Tensor) -> Tensor:
        if not (self.training and self.query_dropout):
            return features
        drawn = torch.rand(len(features), device=features.device) < self.query_dropout
        direction = F.normalize(torch.randn(features.shape, device=features.device), dim=-1)
        replaced = (drawn & mask.any(dim=1))[:, None]
        return torch.where(replaced, direction.to(features.dtype), features)
