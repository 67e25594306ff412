"""One strip of the pair matrix, rows against columns, tile by tile: its sums and its gradients.

u_ij = slope * cos_ij + bias is a tile's exponent; a link says what is summed over the negatives j
of a row (and over the rows of a column) and how that sum depends on u. Nothing larger than a tile
is held, and every tile is computed again for the gradients.

For L_i = log of the sum over j of exp(u_ij), dL_i/du_ij = exp(u_ij - L_i). With g_i the loss's
gradient at L_i, and h_j that at the column's sum, one exponential serves both directions: the
gradient at the cosines of a tile is exp(u_ij - shift) * (a_i + c_j), where the coefficients are
a_i = g_i * exp(shift - L_i) * multiplier * scale and c_j alike. A channel's boost is in u but not
in the coefficients: it is the part of the exponent that backward holds constant.

Shapes: R rows, Q columns, D embed dim, C channels.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from clipkit.losses.link import Softmax

_L2_FILE = Path("/sys/devices/system/cpu/cpu0/cache/index2/size")
_KEPT_BYTES = 2**23  # products this small are kept for the gradients instead of computed again


@dataclass(frozen=True)
class Channel:
    """One way to weight the negatives.

    Attributes:
        multiplier: The exponent is multiplier * logit.
        boost: Each negative counts exp(boost * cosine) times; backward holds that constant.
    """

    multiplier: float = 1.0
    boost: float = 0.0

    def slope(self, scale: float) -> float:
        """Exponent per cosine, the boost included."""
        return self.multiplier * scale + self.boost


@dataclass
class Strip:
    """Rows and columns that meet.

    Attributes:
        rows: (R, D).
        columns: (Q, D).
        positives: (first, stop, offset): row i in first .. stop - 1 belongs to column i + offset.
        same: Pairs of keys (R,), (Q,): where they are equal, the column is no negative of the row.
        valid: (Q,) bool, columns that count; None: all.
        kept: Products of forward, by tile, where they are few enough to keep; None: none kept.
    """

    rows: Tensor
    columns: Tensor
    positives: tuple[int, int, int] = (0, 0, 0)
    same: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    valid: Tensor | None = None
    kept: dict[tuple[int, int], Tensor] | None = None

    def no_negatives(self, i: slice, j: slice) -> Tensor | None:
        """(rows, columns) of a tile that are no negatives, positives apart; None: all are."""
        mask = None if self.valid is None else ~self.valid[None, j]
        for row_keys, column_keys in self.same:
            equal = row_keys[i, None] == column_keys[None, j]
            mask = equal if mask is None else mask | equal
        return mask

    def fill_positives(self, tile: Tensor, i: slice, j: slice, value: float) -> None:
        """Overwrite a tile's positives."""
        first, stop, offset = self.positives
        low, high = max(first, i.start, j.start - offset), min(stop, i.stop, j.stop - offset)
        if low < high:
            square = tile[low - i.start : high - i.start, low + offset - j.start :]
            square.diagonal().fill_(value)


@dataclass
class Sums:
    """What a strip adds to: per channel, over a row's negatives and over a column's.

    Attributes:
        rows: (C, R).
        columns: (C, Q) or None.
        num_rows: (R,) negatives of each row.
        num_columns: (Q,) or None.
    """

    rows: Tensor
    columns: Tensor | None
    num_rows: Tensor
    num_columns: Tensor | None


@dataclass
class Exponents:
    """u = slope * cosine + bias for each channel, computed tile by tile in a reused buffer.

    Attributes:
        slopes: Of each channel.
        bias: Added to every exponent.
        tile: (rows, columns) of a tile.
    """

    slopes: list[float]
    bias: float
    tile: tuple[int, int]
    _buffers: dict[int, Tensor] = field(default_factory=dict)

    @property
    def steepest(self) -> float:
        """The slope tiles are computed with; the other channels' are fractions of it."""
        return max(self.slopes, key=abs) or 1.0

    def buffer(self, number: int, shape: tuple[int, int], like: Tensor) -> Tensor:
        """(rows, columns) of scratch, the same memory for the same number."""
        size = shape[0] * shape[1]
        have = self._buffers.get(number)
        if have is None or have.numel() < size:
            have = torch.empty(size, dtype=wide(like.dtype), device=like.device)
            self._buffers[number] = have
        return have[:size].view(shape)

    def tiles(self, strip: Strip) -> Iterator[tuple[slice, slice, Tensor]]:
        """(rows, columns, steepest * cosine); the tensor may be overwritten.

        Where a strip keeps products, the first walk stores them and the second takes them back.
        """
        num_rows, num_columns = len(strip.rows), len(strip.columns)
        for i in _slices(num_rows, self.tile[0]):
            for j in _slices(num_columns, self.tile[1]):
                key = (i.start, j.start)
                if strip.kept is not None and key in strip.kept:
                    yield i, j, strip.kept.pop(key)
                    continue
                x, y = strip.rows[i], strip.columns[j]
                out = self.buffer(0, (len(x), len(y)), x) if x.dtype == wide(x.dtype) else None
                u = scaled_product(x, y, self.steepest, out)
                if strip.kept is not None:
                    strip.kept[key] = u.clone()
                yield i, j, u

    def of(self, channel: int, product: Tensor) -> Tensor:
        """A channel's exponents from steepest * cosine: in place where there is one channel, else
        in scratch."""
        if len(self.slopes) == 1:
            return product.add_(self.bias) if self.bias else product
        out = self.buffer(1, (product.shape[0], product.shape[1]), product)
        return torch.mul(product, self.slopes[channel] / self.steepest, out=out).add_(self.bias)


def add_sums(strip: Strip, exponents: Exponents, links: list[Softmax], sums: Sums) -> None:
    """Add a strip's terms to `sums`; positives and masked pairs left out."""
    for i, j, product in exponents.tiles(strip):
        mask = strip.no_negatives(i, j)
        for c, link in enumerate(links):
            terms = link.terms(exponents.of(c, product))
            if mask is not None:
                terms.masked_fill_(mask, link.zero)
            strip.fill_positives(terms, i, j, link.zero)
            link.add(sums.rows[c, i], terms, 1)
            if sums.columns is not None:
                link.add(sums.columns[c, j], terms, 0)
        _count(strip, i, j, mask, sums)


def _count(strip: Strip, i: slice, j: slice, mask: Tensor | None, sums: Sums) -> None:
    """Number of negatives: all pairs of a tile but the positives and the masked ones."""
    first, stop, offset = strip.positives
    low, high = max(first, i.start, j.start - offset), min(stop, i.stop, j.stop - offset)
    num_rows, num_columns = i.stop - i.start, j.stop - j.start
    if mask is not None:
        out = mask.expand(num_rows, num_columns).clone()
        strip.fill_positives(out, i, j, True)
        sums.num_rows[i] += num_columns - out.sum(1)
        if sums.num_columns is not None:
            sums.num_columns[j] += num_rows - out.sum(0)
        return
    sums.num_rows[i] += num_columns
    sums.num_rows[low : max(low, high)] -= 1
    if sums.num_columns is not None:
        sums.num_columns[j] += num_rows
        sums.num_columns[low + offset : max(low, high) + offset] -= 1


@dataclass
class Gradients:
    """What a strip's gradients are added to.

    Attributes:
        rows: (R, D) or None.
        columns: (Q, D) or None.
        total: () float64, sum over all pairs of the gradient with respect to the cosine, or None.
    """

    rows: Tensor | None
    columns: Tensor | None
    total: Tensor | None = None


def add_gradients(
    strip: Strip,
    exponents: Exponents,
    links: list[Softmax],
    row_coefficients: list[Tensor],
    column_coefficients: list[Tensor] | None,
    into: Gradients,
) -> None:
    """Add d(sums)/d(rows, columns), weighted by the coefficients of each channel's link.

    Args:
        strip: As in forward.
        exponents: As in forward.
        links: As in forward.
        row_coefficients: Per channel (R,), or (2, R) of an OnlineSoftmax.
        column_coefficients: Per channel alike (Q,); None where no sum runs over a column.
        into: Added to in place.
    """
    for i, j, product in exponents.tiles(strip):
        shape = (product.shape[0], product.shape[1])
        grad = None
        for c, link in enumerate(links):
            u = exponents.of(c, product)
            by_column = None if column_coefficients is None else column_coefficients[c][..., j]
            scratch = exponents.buffer(2, shape, product)
            slopes = link.slopes(u, row_coefficients[c][..., i], by_column, scratch)
            if len(links) == 1:
                grad = slopes
            else:
                grad = slopes.clone() if grad is None else grad.add_(slopes)
        assert grad is not None
        mask = strip.no_negatives(i, j)
        if mask is not None:
            grad.masked_fill_(mask, 0.0)
        strip.fill_positives(grad, i, j, 0.0)
        if into.total is not None:
            into.total += grad.sum(dtype=torch.float64)
        grad = grad.to(strip.rows.dtype)
        if into.rows is not None:
            add_product(into.rows[i], grad, strip.columns[j])
        if into.columns is not None:
            add_product(into.columns[j], grad.T, strip.rows[i])


def wide(dtype: torch.dtype) -> torch.dtype:
    """What sums and exponents of features of this type are held in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def scaled_product(x: Tensor, y: Tensor, alpha: float, out: Tensor | None) -> Tensor:
    """alpha * x @ y.T, never rounded below float32; `out` None: half precision."""
    if out is not None:
        return out.addmm_(x, y.T, beta=0, alpha=alpha)
    return _mixed_product(x, y.T, wide(x.dtype)).mul_(alpha)


def add_product(out: Tensor, grad: Tensor, x: Tensor) -> None:
    """out += grad @ x, accumulated in out's type."""
    if x.dtype == out.dtype:
        out.addmm_(grad, x)
    else:
        out += _mixed_product(grad, x, out.dtype)


def _mixed_product(x: Tensor, y: Tensor, out_dtype: torch.dtype) -> Tensor:
    """Half precision in, float32 out; CUDA only."""
    return torch.mm(x, y, out_dtype=out_dtype)


def row_dots(x: Tensor, y: Tensor) -> Tensor:
    """(R,) float64 dot products of matching rows, without a temporary of their size."""
    rows = 128 if x.device.type == "cpu" else 8192
    out = torch.empty(len(x), dtype=torch.float64, device=x.device)
    for i in _slices(len(x), rows):
        torch.sum(x[i].double() * y[i].double(), 1, out=out[i])
    return out


def add_scaled_rows(out: Tensor, factors: Tensor, x: Tensor) -> None:
    """out += factors[:, None] * x, without a temporary of their size."""
    rows = 1024 if x.device.type == "cpu" else 8192
    for i in _slices(len(x), rows):
        out[i].addcmul_(factors[i, None].to(out.dtype), x[i].to(out.dtype))


def _slices(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


@functools.cache
def _l2_bytes() -> int:
    try:
        text = _L2_FILE.read_text().strip()
        return int(text[:-1]) * {"K": 2**10, "M": 2**20}[text[-1]]
    except (OSError, ValueError, KeyError, IndexError):
        return 2**20


def tile_shape(device: torch.device, tile_size: int | None) -> tuple[int, int]:
    """(rows, columns) of a tile: what stays in a core's cache, or a share of free GPU memory."""
    if tile_size is not None:
        return tile_size, tile_size
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return 4096, max(1024, min(16384, 2 ** ((free // (16 * 4096 * 8)).bit_length() - 1)))
    entries = max(2**16, min(2**20, _l2_bytes() // 4))
    columns = 2 ** ((entries.bit_length() - 1) // 2)
    return entries // columns, columns


def keeps_products(num_pairs: int) -> bool:
    """Whether a problem is so small that its products are kept for the gradients."""
    return num_pairs * 4 <= _KEPT_BYTES
