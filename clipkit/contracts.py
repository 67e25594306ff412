"""What walks between rooms: Batch -> Outputs -> Features -> a loss; Pair names what meets.

Shapes: b rows of this rank, B rows of all ranks, M entries per sample and name, L tokens, D embed
dim. Dimension 0 is the sample in every tensor, so a chunk is a slice. Batch and Outputs are
NamedTuples because DeepSpeed and DDP look for tensors inside tuples and dicts only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from clipkit.dist.collectives import gather_rows, sum_over_ranks

Named = dict[str, Tensor]


class Batch(NamedTuple):
    """Samples of one rank, or a chunk of them.

    Attributes:
        images: View name -> (b, 3, H, W) uint8, or float already normalised. "image" always.
        texts: Name -> (b, M, L) int64; "text" has M = 1.
        ids: (b,) int64, unique over the data set.
        masks: Text name -> (b, M) bool, True where the entry counts; absent: all count.
        extras: Name -> (b, ...), handed to heads with their chunk.
        known: Outputs of frozen towers, name -> (b, M, D); filled in by the step before a replay.
    """

    images: Named
    texts: Named
    ids: Tensor
    masks: Named = {}
    extras: Named = {}
    known: Named = {}

    @property
    def num_samples(self) -> int:
        """b. Not len(): that of a tuple is the number of its fields."""
        return int(self.ids.shape[0])

    def rows(self, start: int, stop: int) -> Batch:
        """The samples start .. stop - 1."""
        return self._map(lambda t: t[start:stop])

    def to(self, device: torch.device) -> Batch:
        """All tensors on `device`."""
        return self._map(lambda t: t.to(device, non_blocking=True))

    def _map(self, fn: Callable[[Tensor], Tensor]) -> Batch:
        def each(named: Named) -> Named:
            return {k: fn(t) for k, t in named.items()}

        return Batch(
            each(self.images),
            each(self.texts),
            fn(self.ids),
            each(self.masks),
            each(self.extras),
            each(self.known),
        )


def base_name(name: str) -> str:
    """ "text" of "text@fused": an embedding made from another keeps its name before the @."""
    return name.partition("@")[0]


def text_keys(tokens: Tensor) -> Tensor:
    """(b, M, L) int64 tokens -> (b, M) int64, equal for equal captions and else different: a linear
    hash modulo 2^64 with fixed random factors."""
    factors = torch.empty(tokens.shape[-1], dtype=torch.int64)
    factors.random_(-(2**63), 2**63 - 1, generator=torch.Generator().manual_seed(2**31 - 1))
    return (tokens * factors.to(tokens.device)).sum(dim=-1)


class Outputs(NamedTuple):
    """What the model makes of a chunk.

    Attributes:
        embeddings: Name -> (b, M, D), L2-normalised; one per view and text name (M = 1 for images).
            What a head makes of "text" beside it is named "text@<something>".
        logit_scale: () fp32, exp already taken.
        logit_bias: () fp32 or None.
        per_sample: Name -> (b,) sums of per-sample losses, each with a "<name>_count" of its terms.
        frozen: Tower outputs that need no gradient, by name; the step returns them in Batch.known.
    """

    embeddings: Named
    logit_scale: Tensor
    logit_bias: Tensor | None = None
    per_sample: Named = {}
    frozen: Named = {}


@dataclass(frozen=True)
class Pair:
    """Which embeddings a loss compares.

    Attributes:
        image: Name of the anchor embeddings of one side, M = 1.
        text: Name of the other side, M = 1. The sides may change places: Pair("text", "image",
            columns=("negative_image",)) gives the captions further images.
        columns: Names of extra negatives of the first side (hard negative captions).
        weight: Factor of this pair's loss.
    """

    image: str = "image"
    text: str = "text"
    columns: tuple[str, ...] = ()
    weight: float = 1.0


class Tiling(NamedTuple):
    """How the tiled losses walk through the pair matrix; changes no result.

    Attributes:
        tile_size: Rows and columns of a tile; None: from the cache, or from free GPU memory.
        plan: "rs" scatters the columns' gradients, "lse" gathers both sides instead; "auto": rs
            inside one node, lse across nodes.
        gather_size: Rows of each rank gathered at once; None: all of them up to 1 GiB.
        product_dtype: What GPU products read float32 features as (sums stay float32); None: as is.
        num_nodes: Over which the ranks are spread.
        rank, world_size: This rank among equals.
    """

    tile_size: int | None = None
    plan: Literal["auto", "rs", "lse"] = "auto"
    gather_size: int | None = None
    product_dtype: torch.dtype | None = None
    num_nodes: int = 1
    rank: int = 0
    world_size: int = 1


@dataclass
class Features:
    """The rank's embeddings, and on demand those of the global batch.

    Attributes:
        embeddings: Name -> (b, M, D) rows of this rank.
        logit_scale, logit_bias: () tensors.
        per_sample: Name -> (b,).
        masks: Name -> (b, M) bool.
        ids: (b,) int64.
        rank, world_size: This rank among equals; b is the same on all.
        text_keys: Text name -> (b, M) int64, equal where the captions are.
        tiling: For losses that use the tiled kernel.
    """

    embeddings: Named
    logit_scale: Tensor
    logit_bias: Tensor | None = None
    per_sample: Named = field(default_factory=dict)
    masks: Named = field(default_factory=dict)
    ids: Tensor | None = None
    rank: int = 0
    world_size: int = 1
    text_keys: Named = field(default_factory=dict)
    tiling: Tiling = Tiling()
    _gathered: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def num_rows(self) -> int:
        """b, rows of this rank."""
        return int(next(iter(self.embeddings.values())).shape[0])

    @property
    def rows(self) -> slice:
        """Where this rank's rows stand in the global batch."""
        return slice(self.rank * self.num_rows, (self.rank + 1) * self.num_rows)

    def local(self, name: str) -> Tensor:
        """(b, M, D) of this rank."""
        return self.embeddings[name]

    def all(self, name: str) -> Tensor:
        """(B, M, D) of all ranks, gathered at most once a step; backward adds over ranks."""
        return self._gather(f"embedding:{name}", self.embeddings[name])

    def all_mask(self, name: str) -> Tensor:
        """(B, M) bool of all ranks; all True where the batch has no mask of this name."""
        shape = self.embeddings[name].shape[:2]
        mask = self.masks.get(name)
        if mask is None:
            return torch.ones(
                (shape[0] * self.world_size, shape[1]),
                dtype=torch.bool,
                device=self.logit_scale.device,
            )
        return self._gather(f"mask:{name}", mask.to(torch.uint8)).bool()

    def sum(self, x: Tensor) -> Tensor:
        """Sum over ranks; backward adds over ranks."""
        return sum_over_ranks(x, self.world_size)

    def release(self) -> None:
        """Forget what was gathered, and the graph that hangs on it."""
        self._gathered.clear()

    def _gather(self, key: str, x: Tensor) -> Tensor:
        if key not in self._gathered:
            self._gathered[key] = gather_rows(x, self.world_size)
        return self._gathered[key]
