"""Ranks and recall by tiles: exact, any number of positives, both ways from the same products.

An fp32 tile is compared with the score of each row's and column's best positive. Entries farther
from it than the product's error are settled; the few between are scored again one by one, and a
tile where they are many (a model that gives all inputs the same features) is scored in fp64. So
ranks depend on the features alone: not on tiles, threads, BLAS or the number of ranks.

Shapes: N queries, M targets, P positive pairs, R x C a tile, D embed dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from clipkit.dist.group import World
from clipkit.errors import DataError
from clipkit.retrieval.scores import error_bound, full_precision, pair_scores, tile_scores

_DENSE = 256  # one entry in so many unsettled: scoring the whole tile in fp64 is cheaper
_FLUSHED = 2.0**-120  # more than what subnormal terms, taken as zero, can take from a product
_LANES = 255  # bytes of 0 or 1 that can be added without carrying into the next byte


class Side(NamedTuple):
    """One direction of a retrieval.

    Attributes:
        ranks: (n,) int64, negatives that score at least as high as the best positive, 0 = first;
            the number of candidates where there is no positive.
        tied: (n,) bool, whether a negative scores exactly as high as the best positive.
    """

    ranks: Tensor
    tied: Tensor


def ranks(
    queries: Tensor,
    targets: Tensor,
    pairs: Tensor,
    *,
    both: bool = True,
    world: World | None = None,
    block: int = 2048,
) -> tuple[Tensor, Tensor | None]:
    """(N,) ranks of the queries and (M,) of the targets; see `rank_sides`."""
    forth, back = rank_sides(queries, targets, pairs, both=both, world=world, block=block)
    return forth.ranks, back.ranks if back else None


def rank_sides(
    queries: Tensor,
    targets: Tensor,
    pairs: Tensor,
    *,
    both: bool = True,
    world: World | None = None,
    block: int = 2048,
) -> tuple[Side, Side | None]:
    """Rank of every query's best positive among the targets, and the other way round.

    The rank is the number of *negatives* scoring at least as high, so a constant model ranks last,
    not first, and positives do not stand in each other's way.

    Args:
        queries: (N, D) rows of any floating type; the same on all ranks.
        targets: (M, D) rows.
        pairs: (P, 2) int64, (query, target) of every positive.
        both: Rank the queries for every target too.
        world: Ranks that share the work; each gets the whole result.
        block: Queries and targets scored at once; memory grows with its square.

    Returns:
        The queries' side, and the targets' (None without `both`).

    Raises:
        DataError: Features are not finite or too large for fp32, or a pair points nowhere.
    """
    n, m = len(queries), len(targets)
    world = world or World()
    pairs = pairs.to(queries.device).view(-1, 2)
    _check_pairs(pairs, n, m)
    with full_precision():
        sides = _sides(queries, targets, pairs, both)
        buffer = queries.new_empty(min(block, n) * min(block, m), dtype=torch.float32)
        for number, tile in enumerate(_tiles(pairs, n, m, block)):
            if number % world.world_size == world.rank:
                _add_tile(queries, targets, tile, sides, buffer)
    found = [side.result(world, others) for side, others in zip(sides, (m, n))]
    return found[0], found[1] if both else None


def recall_at(ranks: Tensor, k: int) -> float:
    """Share of queries with a positive among the first k."""
    return float((ranks < k).double().mean())


def _check_pairs(pairs: Tensor, n: int, m: int) -> None:
    if pairs.is_floating_point():
        raise DataError(f"positive pairs are {pairs.dtype}, they must be whole numbers")
    size = pairs.new_tensor([n, m])
    wrong = ((pairs < 0) | (pairs >= size)).any(dim=1).nonzero()
    if len(wrong):
        row, column = pairs[int(wrong[0])].tolist()
        raise DataError(f"positive pair ({row}, {column}) is outside {n} queries x {m} targets")


class _Tile(NamedTuple):
    rows: slice
    columns: slice
    positives: Tensor  # (p, 2), counted from the tile's corner


def _tiles(pairs: Tensor, n: int, m: int, block: int) -> Iterator[_Tile]:
    """Tiles row by row, each with the positives in it."""
    across = -(-m // block)
    number = pairs[:, 0] // block * across + pairs[:, 1] // block  # (P,)
    number, order = number.sort()
    pairs = pairs[order]
    count = -(-n // block) * across
    ends = torch.searchsorted(number, torch.arange(count + 1, device=pairs.device)).tolist()
    for t in range(count):
        i, j = t // across * block, t % across * block
        inside = pairs[ends[t] : ends[t + 1]] - pairs.new_tensor([i, j])
        yield _Tile(slice(i, min(i + block, n)), slice(j, min(j + block, m)), inside)


@dataclass
class _Tally:
    """One side's counts, and the numbers its lines (rows or columns of a tile) are compared with.

    Attributes:
        along: Dimension of a tile that is summed: 1 for rows, 0 for columns.
        best: (n,) score of the best positive, fp32; infinity where there is none.
        low: (n,) a product below this is surely behind the best positive.
        high: (n,) a product above this is surely ahead.
        ahead: (n,) int64, negatives at least as high as the best positive.
        ties: (n,) int64, negatives exactly as high.
    """

    along: int
    best: Tensor
    low: Tensor
    high: Tensor
    ahead: Tensor
    ties: Tensor

    def result(self, world: World, candidates: int) -> Side:
        """Counts of all ranks."""
        ahead, ties = (world.sum_(x.to(world.device)).to(x.device) for x in (self.ahead, self.ties))
        return Side(ahead.masked_fill(self.best.isinf(), candidates), ties > 0)

    def line(self, threshold: Tensor) -> Tensor:
        """A threshold per line, shaped to be compared with a tile."""
        return threshold[:, None] if self.along else threshold[None, :]


def _sides(queries: Tensor, targets: Tensor, pairs: Tensor, both: bool) -> list[_Tally]:
    """A tally for the queries, and one for the targets."""
    lengths = [_norms(queries), _norms(targets)]
    largest = [float(x.max()) if len(x) else 0.0 for x in lengths]
    if not largest[0] * largest[1] < torch.finfo(torch.float32).max / 2:  # also where it is NaN
        raise DataError("features hold NaN, infinity, or numbers too large; the model is broken")
    scores = pair_scores(queries, targets, *pairs.T) if len(pairs) else queries.new_zeros(0)
    dim = queries.shape[1]
    sides = []
    for k in range(2 if both else 1):
        error = error_bound(dim, torch.float32) * lengths[k] * largest[1 - k] + dim * _FLUSHED
        best = torch.full_like(error, float("-inf"), dtype=torch.float32)
        best = best.scatter_reduce(0, pairs[:, k], scores.float(), "amax")
        best = best.masked_fill(best.isinf(), float("inf"))  # nothing is ahead of no positive
        low, high = (best - error).float(), (best + error).float()
        zeros = torch.zeros_like(best, dtype=torch.int64)
        sides.append(_Tally(1 - k, best, low, high, zeros, zeros.clone()))
    return sides


def _norms(features: Tensor) -> Tensor:
    """(n, D) -> (n,) fp64 lengths, by blocks."""
    lengths = features.new_empty(len(features), dtype=torch.float64)
    for part, out in zip(features.split(1024), lengths.split(1024)):
        out.copy_(part.double().norm(dim=1))
    return lengths


def _add_tile(
    queries: Tensor, targets: Tensor, tile: _Tile, sides: list[_Tally], buffer: Tensor
) -> None:
    """Count one tile for every side."""
    rows, columns = queries[tile.rows], targets[tile.columns]
    scores = buffer[: len(rows) * len(columns)].view(len(rows), len(columns))
    torch.mm(rows.float(), columns.float().T, out=scores)
    scores[tile.positives[:, 0], tile.positives[:, 1]] = float("-inf")
    spans = (tile.rows, tile.columns)
    counts = [_count_settled(scores, side, span) for side, span in zip(sides, spans)]
    if sum(c.unsettled for c in counts) * _DENSE > scores.numel():
        scores = tile_scores(rows, columns)
        scores[tile.positives[:, 0], tile.positives[:, 1]] = float("-inf")
        for side, span in zip(sides, spans):
            best = side.line(side.best[span])
            side.ahead[span] += _count(torch.ge, scores, best, side.along)
            side.ties[span] += _count(torch.eq, scores, best, side.along)
        return
    for side, span, count in zip(sides, spans, counts):
        side.ahead[span] += count.ahead
        if count.unsettled:
            i, j = _between(scores, side, span, count.lines)
            own = pair_scores(rows, columns, i, j)
            lines = i if side.along else j
            best = side.best[span][lines]
            side.ahead[span].index_add_(0, lines, (own >= best).long())
            side.ties[span].index_add_(0, lines, (own == best).long())


class _Settled(NamedTuple):
    ahead: Tensor  # (lines of the tile,) entries surely ahead
    unsettled: int  # entries between low and high
    lines: Tensor  # lines that hold one


def _count_settled(scores: Tensor, side: _Tally, span: slice) -> _Settled:
    """How many entries of each line are surely ahead, and which lines hold others in question."""
    low, high = side.low[span], side.high[span]
    lines = (scores.amax(dim=side.along) >= low).nonzero()[:, 0]  # most lines have nothing ahead
    some = _lines_of(scores, lines, side.along)
    maybe = _count(torch.ge, some, side.line(low[lines]), side.along)
    ahead = torch.zeros_like(low, dtype=torch.int64)
    sure = _count(torch.gt, some, side.line(high[lines]), side.along)
    ahead.index_copy_(0, lines, sure)
    between = maybe - sure
    return _Settled(ahead, int(between.sum()), lines[between.nonzero()[:, 0]])


def _between(scores: Tensor, side: _Tally, span: slice, lines: Tensor) -> tuple[Tensor, Tensor]:
    """Places (rows, columns) of the entries in question, within `lines`."""
    some = _lines_of(scores, lines, side.along)
    low, high = (side.line(x[span][lines]) for x in (side.low, side.high))
    i, j = ((some >= low) & (some <= high)).nonzero().T
    return (lines[i], j) if side.along else (i, lines[j])


def _lines_of(scores: Tensor, lines: Tensor, along: int) -> Tensor:
    """Some rows or columns of a tile; the tile itself where that saves nothing."""
    if len(lines) == scores.shape[1 - along]:
        return scores
    return scores.index_select(1 - along, lines)


def _count(compare: Callable[..., Tensor], a: Tensor, b: Tensor, along: int) -> Tensor:
    """Entries of each line for which `compare(a, b)` holds, int64.

    Eight comparisons' bytes are added as one int64, several times as fast as a sum of bools.
    """
    rows, columns = a.shape
    if not a.numel():
        return torch.zeros(rows if along else columns, dtype=torch.int64, device=a.device)
    width = -(-columns // 8) * 8
    mask = torch.empty(rows, width, dtype=torch.bool, device=a.device)
    mask[:, columns:] = False
    compare(a, b, out=mask[:, :columns])
    words = mask.view(torch.int64)  # (rows, width / 8)
    total = torch.zeros(rows if along else width, dtype=torch.int64, device=a.device)
    for part in words.split(_LANES, dim=along):
        counts = part.sum(dim=along).view(torch.uint8)
        total += counts.view(rows, 8).sum(dim=1) if along else counts
    return total if along else total[:columns]
