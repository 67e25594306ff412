"""A sweep of strips over all ranks: what is gathered, added and scattered, and when.

Shapes: b rows of this rank, N ranks, B = N * b, n columns of this rank, D embed dim, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from clipkit.contracts import Tiling
from clipkit.dist import collectives
from clipkit.losses.link import OnlineSoftmax, Sigmoid, Softmax
from clipkit.losses.strip import (
    Channel,
    Exponents,
    Gradients,
    Strip,
    Sums,
    add_gradients,
    add_scaled_rows,
    add_sums,
    row_dots,
    tile_shape,
    wide,
)

_IMAGE = -1  # number of the rows' side where texts are 0 and extra columns 1, 2, ...
_GATHER_BYTES = 2**30  # larger gathers are made in chunks, once for the sums and once for gradients


_Coefficients = tuple[list[Tensor], list[Tensor] | None]  # of rows, of columns; one a channel


@dataclass
class Side:
    """This rank's rows of one side of the pair matrix.

    Attributes:
        rows: (n, D).
        keys: Name -> (n,) int64; sides that share a key mask pairs where it is equal.
        valid: (n,) bool, None: all.
    """

    rows: Tensor
    keys: dict[str, Tensor]
    valid: Tensor | None = None


@dataclass
class FeatureGrads:
    """Gradients of one rank's features and scalars."""

    image: Tensor
    text: Tensor
    scale: Tensor
    bias: Tensor | None
    extra: list[Tensor]


@dataclass
class _Block:
    """Columns low .. high - 1 of every rank, rank after rank."""

    low: int
    high: int
    strip: Strip


@dataclass
class Sweep:
    """Rows of this rank against the columns of all.

    Args:
        image: The rows.
        text: Columns in both directions; row i's positive is text i.
        extra: Columns of the row direction only.
        scale: logit_scale.
        bias: logit_bias.
        channels: One sum over the negatives for each.
        sigmoid: Softplus instead of log-sum-exp.
        has_bias: Whether the bias wants a gradient.
        tiling: Tile size, plan and ranks.
        keep: Whether to keep the products of forward.
    """

    image: Side
    text: Side
    extra: list[Side]
    scale: float
    bias: float
    channels: list[Channel]
    sigmoid: bool
    has_bias: bool
    tiling: Tiling
    keep: bool
    _links: list[Softmax] = field(init=False)
    _gathered: dict[tuple[int, int, int], Tensor] = field(default_factory=dict)
    _kept: dict[tuple[int, int], dict[tuple[int, int], Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        dtype = self._product_dtype(self.image.rows)
        for side in (self.image, self.text, *self.extra):
            side.rows = side.rows.to(dtype)
        slopes = [c.slope(self.scale) for c in self.channels]
        if self.sigmoid:
            self._links = [Sigmoid() for _ in slopes]
        else:
            self._links = [Softmax(abs(s)) for s in slopes]
        shape = tile_shape(self.image.rows.device, self.tiling.tile_size)
        self._exponents = Exponents(slopes, self.bias, shape)
        self._drop_unique_keys()

    def sums(self) -> Sums:
        """Finished sums, (C, b) each: of own rows and of own columns, over all ranks.

        One pass of tiles; a second, slower one where a constant shift lost terms.
        """
        sums, lost = self._pass()
        if bool(lost):
            self._links = [OnlineSoftmax() for _ in self._links]
            self._kept.clear()
            sums, _ = self._pass()
        sums.rows = torch.stack([link.finish(s) for link, s in zip(self._links, sums.rows)])
        if sums.columns is not None:
            own = [link.finish(s) for link, s in zip(self._links, sums.columns)]
            sums.columns = torch.stack(own)
        return sums

    def positive_cosines(self) -> Tensor:
        """(b,) float64."""
        return row_dots(self.image.rows, self.text.rows)

    def gradients(self, sums: Sums, rows: Tensor, columns: Tensor, cosine: Tensor) -> FeatureGrads:
        """Gradients from those of the sums (C, b) and of the positives' cosines (b,)."""
        x = self.image.rows
        by_row = self._coefficients(rows, sums.rows)
        by_column = None if sums.columns is None else self._coefficients(columns, sums.columns)
        total = torch.zeros((), dtype=torch.float64, device=x.device) if self.has_bias else None
        d_image = torch.zeros_like(x, dtype=wide(x.dtype))
        plan = self._gradients_lse if self._plan() == "lse" else self._gradients_rs
        d_sides = plan((by_row, by_column), Gradients(d_image, None, total))
        d_scale = row_dots(x, d_image).sum() / self.scale
        add_scaled_rows(d_image, cosine, self.text.rows)
        add_scaled_rows(d_sides[0], cosine, x)
        self._gathered.clear()
        bias = None if total is None else total / self.scale
        return FeatureGrads(d_image, d_sides[0], d_scale, bias, d_sides[1:])

    def _coefficients(self, grads: Tensor, values: Tensor) -> list[Tensor]:
        """Per channel, a of `strip.py` from the gradients of the sums (C, b)."""
        found = []
        for link, channel, grad, value in zip(self._links, self.channels, grads, values):
            weighted = grad * (channel.multiplier * self.scale)
            found.append(link.coefficients(weighted, value).to(wide(self.image.rows.dtype)))
        return found

    def _pass(self) -> tuple[Sums, Tensor]:
        """Sums of own rows and own columns, and whether any rank lost terms."""
        t, like = self.tiling, self.image.rows
        b, n, count = len(like), len(self.text.rows), len(self.channels)
        link, both = self._links[0], not self.sigmoid
        rows = link.begin(count, b, like=like)
        num_rows = torch.zeros(b, dtype=torch.int64, device=like.device)
        columns = link.begin(count, t.world_size, n, like=like) if both else None
        num_columns = torch.zeros((t.world_size, n), dtype=torch.int64, device=like.device)
        for number in range(1 + len(self.extra)):
            two_way = both and number == 0
            for block in self._blocks(number):
                width = len(block.strip.columns)
                part = Sums(rows, None, num_rows, None)
                if two_way:
                    part.columns = link.begin(count, width, like=like)
                    part.num_columns = torch.zeros(width, dtype=torch.int64, device=like.device)
                add_sums(block.strip, self._exponents, self._links, part)
                if two_way and columns is not None and part.num_columns is not None:
                    place = slice(block.low, block.high)
                    columns[:, :, place] = part.columns.view(count, t.world_size, -1)  # type: ignore[union-attr]
                    num_columns[:, place] = part.num_columns.view(t.world_size, -1)
        return self._over_ranks(Sums(rows, columns, num_rows, num_columns if both else None))

    def _over_ranks(self, sums: Sums) -> tuple[Sums, Tensor]:
        """Add the column sums of all ranks, keep this rank's columns; one collective."""
        t = self.tiling
        lost = torch.stack([k.lost(s, sums.num_rows) for k, s in zip(self._links, sums.rows)]).any()
        if sums.columns is None or sums.num_columns is None:
            return sums, lost
        online = isinstance(self._links[0], OnlineSoftmax)
        if t.world_size > 1 and online:
            highest = collectives.all_reduce_max(sums.columns, t.world_size).clamp(min=-1e300)
            shifted = (sums.columns - highest).exp()
            sums.columns = collectives.all_reduce(shifted, t.world_size).log() + highest
            sums.num_columns = collectives.all_reduce(sums.num_columns, t.world_size)
        elif t.world_size > 1:
            parts = [sums.columns.flatten(), sums.num_columns.flatten().double()]
            packed = torch.cat([*parts, lost.double()[None]])
            packed = collectives.all_reduce(packed, t.world_size)
            size = sums.columns.numel()
            sums.columns = packed[:size].view(sums.columns.shape)
            sums.num_columns = packed[size:-1].view(sums.num_columns.shape).long()
            lost = packed[-1] > 0
        if not online:
            by_channel = zip(self._links, sums.columns)
            lost = lost | torch.stack([k.lost(s, sums.num_columns) for k, s in by_channel]).any()
        else:
            lost = torch.zeros_like(lost)
        sums.columns, sums.num_columns = sums.columns[:, t.rank], sums.num_columns[t.rank]
        return sums, lost

    def _gradients_rs(self, own_coefficients: _Coefficients, into: Gradients) -> list[Tensor]:
        """Own rows against all columns; column gradients are added over ranks and scattered."""
        t, (by_row, by_column) = self.tiling, own_coefficients
        dtype = wide(self.image.rows.dtype)
        all_columns = self._gather_coefficients(by_column)
        d_sides = []
        for number, side in enumerate([self.text, *self.extra]):
            own = None
            for block in self._blocks(number):
                part = torch.zeros_like(block.strip.columns, dtype=dtype)
                coefficients = self._block_coefficients(all_columns, block, number)
                both = Gradients(into.rows, part, into.total)
                add_gradients(block.strip, self._exponents, self._links, by_row, coefficients, both)
                scattered = collectives.reduce_scatter(part, t.world_size, t.rank)  # (n, D)
                if own is None and block.high - block.low == len(side.rows):
                    own = scattered
                else:
                    own = torch.empty_like(side.rows, dtype=dtype) if own is None else own
                    own[block.low : block.high] = scattered
            d_sides.append(torch.zeros_like(side.rows, dtype=dtype) if own is None else own)
        return d_sides

    def _gradients_lse(self, own_coefficients: _Coefficients, into: Gradients) -> list[Tensor]:
        """Own rows against all columns, then all rows against own columns; each rank ends with its
        own gradients."""
        by_row, by_column = own_coefficients
        all_columns, all_rows = (self._gather_coefficients(c) for c in (by_column, by_row))
        assert all_rows is not None
        for number in range(1 + len(self.extra)):
            for block in self._blocks(number):
                coefficients = self._block_coefficients(all_columns, block, number)
                add_gradients(block.strip, self._exponents, self._links, by_row, coefficients, into)
        sides = [self.text, *self.extra]
        dtype = wide(self.image.rows.dtype)
        d_sides = [torch.zeros_like(s.rows, dtype=dtype) for s in sides]
        for low, high, gathered in self._gathers(_IMAGE, self.image):
            rows = [a[..., low:high].flatten(-2) for a in all_rows]
            for number, side in enumerate(sides):
                strip = self._strip_of_all(low, high, gathered, number, side)
                own = by_column if number == 0 else None
                columns_only = Gradients(None, d_sides[number])
                add_gradients(strip, self._exponents, self._links, rows, own, columns_only)
        return d_sides

    def _blocks(self, number: int) -> Iterator[_Block]:
        """Strips of own rows against chunks of all ranks' columns of side `number`."""
        side = [self.text, *self.extra][number]
        t = self.tiling
        for low, high, columns in self._gathers(number, side):
            width = high - low
            strip = Strip(self.image.rows, columns)
            if number == 0:
                strip.positives = (low, high, t.rank * width - low)
            strip.same = [
                (self.image.keys[k], self._gather_part(v, low, high))
                for k, v in side.keys.items()
                if k in self.image.keys
            ]
            if side.valid is not None:
                strip.valid = self._gather_part(side.valid.to(torch.uint8), low, high).bool()
            if self.keep:
                strip.kept = self._kept.setdefault((number, low), {})
            yield _Block(low, high, strip)

    def _strip_of_all(self, low: int, high: int, rows: Tensor, number: int, side: Side) -> Strip:
        """A strip of all ranks' rows low .. high - 1 against this rank's columns."""
        t, width = self.tiling, high - low
        strip = Strip(rows, side.rows, valid=side.valid)
        if number == 0:
            first = t.rank * width
            strip.positives = (first, first + width, low - first)
        strip.same = [
            (self._gather_part(self.image.keys[k], low, high), v)
            for k, v in side.keys.items()
            if k in self.image.keys
        ]
        return strip

    def _gathers(self, number: int, side: Side) -> Iterator[tuple[int, int, Tensor]]:
        """(low, high, (N * (high - low), D)): rows of all ranks, kept where they fit at once."""
        t, n = self.tiling, len(side.rows)
        size = self._gather_rows(side)
        for low in range(0, n, size):
            high = min(low + size, n)
            key = (number, low, high)
            gathered = self._gathered.get(key)
            if gathered is None:
                gathered = collectives.all_gather(side.rows[low:high], t.world_size)
                if size >= n:
                    self._gathered[key] = gathered
            yield low, high, gathered

    def _gather_part(self, x: Tensor, low: int, high: int) -> Tensor:
        return collectives.all_gather(x[low:high], self.tiling.world_size)

    def _gather_rows(self, side: Side) -> int:
        """Rows of each rank gathered at once, the same on every rank."""
        t, n = self.tiling, max(1, len(side.rows))
        if t.world_size == 1:
            return n
        if t.gather_size is not None:
            return min(n, t.gather_size)
        row_bytes = 4 * side.rows.shape[1] * t.world_size
        return max(1, min(n, _GATHER_BYTES // row_bytes))

    def _gather_coefficients(self, own: list[Tensor] | None) -> list[Tensor] | None:
        """Per channel (..., N, b) from this rank's (..., b)."""
        if own is None:
            return None
        t = self.tiling
        gathered = collectives.all_gather(torch.stack(own)[None], t.world_size)  # (N, C, ..., b)
        return list(gathered.movedim(0, -2))

    def _block_coefficients(
        self, all_columns: list[Tensor] | None, block: _Block, number: int
    ) -> list[Tensor] | None:
        """Those of a block's columns; extra columns have none."""
        if all_columns is None or number > 0:
            return None
        return [c[..., block.low : block.high].flatten(-2) for c in all_columns]

    def _plan(self) -> str:
        t = self.tiling
        if t.world_size == 1:
            return "rs"
        if t.plan == "auto":
            return "lse" if t.num_nodes > 1 else "rs"
        return t.plan

    def _drop_unique_keys(self) -> None:
        """Forget keys that no two samples of the global batch share."""
        for name in list(self.image.keys):
            own = [self.image.keys[name], *(s.keys[name] for s in self.extra if name in s.keys)]
            everyone = collectives.all_gather(torch.cat(own), self.tiling.world_size)
            if len(torch.unique(everyone)) == len(everyone):
                for side in (self.image, self.text, *self.extra):
                    side.keys = {k: v for k, v in side.keys.items() if k != name}

    def _product_dtype(self, rows: Tensor) -> torch.dtype:
        """What the products read: half precision only where they are summed in float32."""
        if rows.device.type != "cuda" or rows.dtype == torch.float64:
            return wide(rows.dtype)
        if rows.dtype == torch.float32 and self.tiling.product_dtype is not None:
            return self.tiling.product_dtype
        return rows.dtype if rows.dtype == torch.bfloat16 else torch.float32  # fp16 underflows
