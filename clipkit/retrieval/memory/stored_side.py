"""One modality of a memory: its stored features, and the search of a faiss index over them.

faiss proposes rows; what is returned are the scores of `scores.py` of the stored features, so they
depend on nothing else. Over a flat index the answer is exact: more rows are fetched until no row
that was not can belong to it, by the error bound of faiss's fp32 products.

Shapes: n queries, b of them at once, w rows fetched, k wanted, D embed dim.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from clipkit.errors import DataError
from clipkit.retrieval.scores import error_bound, full_precision, pair_scores, tile_scores

Keep = Callable[[Tensor, Tensor, Tensor], Tensor]
_EXTRA = 8  # rows fetched beyond k
_REFINED = 4  # rows of an approximate index scored again for each wanted one
_GROWTH = 8
_QUERIES = 4096  # at once; faiss's products are slow for few
_CANDIDATES = 1 << 18  # at once
_GATHERED = 1 << 14  # features read at once
_DENSE = 8  # a product of matrices costs so much less for each pair than single pairs


def unit_rows(features: np.ndarray, rows: np.ndarray | slice) -> np.ndarray:
    """(r, D) fp32 unit rows of (N, D) float16 features; rows of zeros stay."""
    found = np.asarray(features[rows], dtype=np.float32)
    norms = np.linalg.norm(found, axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):  # what is not finite stays so
        return found / np.maximum(norms, np.float32(1e-12))


class _Candidates(NamedTuple):
    scores: Tensor  # (b, w) fp32, falling; -inf for none
    rows: Tensor  # (b, w), of equal scores the lowest first; -1 for none
    bound: Tensor  # (b,) no row that was not fetched scores higher
    rest: Tensor  # (b,) bool, whether there are such rows


class StoredSide:
    """Stored features and their index.

    Args:
        features: (N, D) float16.
        index: File of a faiss index, or one in memory.
        rows: (n,) rising rows that the index holds, in its order; None: all.
        exact: The index is flat.
        nprobe: Lists of an IVF index that are searched.
    """

    def __init__(
        self,
        features: np.ndarray,
        index: Path | Any,
        *,
        rows: np.ndarray | None = None,
        exact: bool = True,
        nprobe: int = 1,
    ) -> None:
        self.features, self.rows, self.exact, self.nprobe = features, rows, exact, nprobe
        self._index = index

    def __len__(self) -> int:
        return len(self.features if self.rows is None else self.rows)

    @cached_property
    def index(self) -> Any:
        """The faiss index; a file is mapped, not read.

        Raises:
            DataError: It is damaged, or of other features.
        """
        import faiss

        index = self._index
        if isinstance(index, Path):
            if self.exact:
                _check_flat(index, len(self), self.features.shape[1])
            try:
                index = faiss.read_index(str(index), faiss.IO_FLAG_MMAP_IFC)
            except (RuntimeError, MemoryError) as error:
                line = str(error).strip().splitlines()[-1][-200:]
                raise DataError(f"{self._index}: cannot be read: {line}") from None
            if isinstance(index, faiss.IndexFlat) != self.exact:
                raise DataError(
                    f"{self._index}: is a flat index, not ivf_sq8; build the memory anew"
                )
            if (index.ntotal, index.d) != (len(self), self.features.shape[1]):
                raise DataError(
                    f"{self._index}: holds {index.ntotal} rows of {index.d}, not {len(self)} of "
                    f"{self.features.shape[1]}; build the memory anew"
                )
        return index

    def unit(self, rows: Tensor) -> Tensor:
        """(*rows, D) fp32 unit features; zeros at -1.

        Raises:
            DataError: A row is not finite.
        """
        flat = rows.reshape(-1).cpu().numpy()
        found = np.zeros((len(flat), self.features.shape[1]), np.float32)
        found[flat >= 0] = unit_rows(self.features, flat[flat >= 0])
        if not np.isfinite(found).all():
            place = getattr(self.features, "filename", None) or "a memory"
            raise DataError(f"{place}: holds NaN or infinity; build the memory anew")
        return torch.from_numpy(found).view(*rows.shape, found.shape[1]).to(rows.device)

    def cosines(self, queries: Tensor, rows: Tensor) -> Tensor:
        """(b, w) fp32 scores of (b, D) queries with (b, w) rows; 0 at -1."""
        met = torch.zeros(len(self.features) + 1, dtype=torch.bool)
        met[rows + 1] = True
        known = met.nonzero()[:, 0] - 1  # (u,)
        if len(known) <= _DENSE * rows.shape[1]:  # most queries have most of these rows
            places = met.cumsum(dim=0)[rows + 1] - 1
            return self._all_cosines(queries, known).gather(1, places)
        out = torch.empty(rows.shape)
        size = max(1, _GATHERED // rows.shape[1])
        for q, r, into in zip(queries.split(size), rows.split(size), out.split(size)):
            into.copy_(_row_scores(q, self.unit(r)))
        return out

    def _all_cosines(self, queries: Tensor, rows: Tensor) -> Tensor:
        """(b, D) queries, (u,) rows -> (b, u)."""
        out = torch.empty(len(queries), len(rows))
        for part, into in zip(rows.split(_GATHERED), out.split(_GATHERED, dim=1)):
            into.copy_(tile_scores(queries, self.unit(part)))
        return out

    def search(self, queries: Tensor, k: int, keep: Keep | None = None) -> tuple[Tensor, Tensor]:
        """The k best rows of those that may be kept.

        Args:
            queries: (n, D) unit rows.
            k: How many.
            keep: (numbers of queries (b,), scores (b, w), rows (b, w), best first, from the first
                row on) -> (b, w) bool. A row's verdict may hang on those before it, not on those
                behind.

        Returns:
            (n, k) fp32 scores, -inf for none, and (n, k) int64 rows, -1 for none, on the CPU.

        Raises:
            DataError: A query is not finite or of another dimension, or the index is damaged.
        """
        queries = self._checked(queries, k)
        scores = torch.full((len(queries), k), float("-inf"))
        rows = torch.full((len(queries), k), -1)
        todo = torch.arange(len(queries) if len(self) else 0)
        width = k + _EXTRA if self.exact else _REFINED * k + _EXTRA
        while len(todo):
            few = _DENSE * width >= len(self) if self.exact else width >= len(self)
            width, unsure = len(self) if few else width, []
            for part in todo.split(min(_QUERIES, max(1, _CANDIDATES // width))):
                found = self._candidates(queries[part], width)
                kept = found.rows >= 0
                if keep is not None:
                    kept &= keep(part, found.scores, found.rows)
                first = kept.logical_not().byte().argsort(dim=1, stable=True)[:, :k]  # (b, k)
                kept = kept.gather(1, first)
                best = found.scores.gather(1, first).masked_fill(~kept, float("-inf"))
                unsure.append(part[found.rest & ~(best[:, -1] > found.bound)])
                scores[part, : first.shape[1]] = best
                rows[part, : first.shape[1]] = found.rows.gather(1, first).masked_fill(~kept, -1)
            todo, width = torch.cat(unsure), _GROWTH * width
        return scores, rows

    def _candidates(self, queries: Tensor, width: int) -> _Candidates:
        # captions repeat, and with one feature for many rows there may be many candidates
        distinct, copies = torch.unique(queries, dim=0, return_inverse=True)
        with full_precision():
            found = (
                self._all(distinct)
                if self.exact and width == len(self)
                else self._proposed(distinct, width)
            )
        return _Candidates(*(x[copies] for x in found))

    def _all(self, queries: Tensor) -> _Candidates:
        rows = torch.arange(len(self)) if self.rows is None else torch.from_numpy(self.rows)
        scores, order = self._all_cosines(queries, rows).sort(dim=1, descending=True, stable=True)
        none = torch.full((len(queries),), float("-inf"))
        return _Candidates(scores, rows[order], none, none > 0)

    def _proposed(self, queries: Tensor, width: int) -> _Candidates:
        """What faiss finds, with exact scores."""
        if not self.exact:
            self.index.nprobe = self.nprobe
        guess, places = map(torch.from_numpy, self.index.search(queries.numpy(), width))
        if len(places) and not -1 <= int(places.min()) <= int(places.max()) < len(self):
            raise DataError(f"{self._index}: names rows that there are not; build the memory anew")
        rows = places
        if self.rows is not None:
            rows = torch.from_numpy(self.rows)[places.clamp(min=0)].masked_fill(places < 0, -1)
        rows = rows.sort(dim=1).values
        scores = self.cosines(queries, rows).masked_fill(rows < 0, float("-inf"))
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        bound = torch.full_like(guess[:, -1], float("-inf"))
        if self.exact:
            # twice: stored rows are of unit length but for a rounding
            error = 2 * error_bound(queries.shape[1], torch.float32) * queries.norm(dim=1)
            bound = guess[:, -1] + error
        rest = (places[:, -1] >= 0) & (width < len(self))
        return _Candidates(scores, rows.gather(1, order), bound, rest)

    def _checked(self, queries: Tensor, k: int) -> Tensor:
        queries = queries.detach().cpu().float().contiguous()
        dim = self.features.shape[1]
        if queries.ndim != 2 or queries.shape[1] != dim or k < 1:
            raise DataError(
                f"a memory of dimension {dim} cannot answer queries of shape "
                f"{tuple(queries.shape)} with k = {k}"
            )
        if not bool(queries.isfinite().all()):
            raise DataError("features hold NaN or infinity; the model is broken")
        return queries


def _check_flat(path: Path, rows: int, dim: int) -> None:
    """faiss trusts what a file claims, and a crafted one crashes it: all is told from here.

    Raises:
        DataError: It is not the flat index of so many rows.
    """
    import faiss

    empty = faiss.serialize_index(faiss.IndexFlatIP(dim)).tobytes()  # kind, dim, rows, ..., floats
    header = empty[:8] + struct.pack("<q", rows) + empty[16:-8] + struct.pack("<Q", rows * dim)
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            found = file.read(len(header))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    if found != header or size != len(header) + 4 * rows * dim:
        raise DataError(
            f"{path}: is not the flat index of {rows} rows of {dim}; build the memory anew"
        )


def _row_scores(queries: Tensor, features: Tensor) -> Tensor:
    """(b, D), (b, w, D) -> (b, w) fp32 scores, by products in fp64 as `tile_scores` has them."""
    product = torch.bmm(features.double(), queries.double()[:, :, None])[..., 0]  # (b, w)
    lengths = features.norm(dim=2) * queries.norm(dim=1, keepdim=True)
    error = error_bound(queries.shape[1], torch.float64) * 2 * lengths
    scores = (product - error).float()
    unsure = (scores != (product + error).float()).nonzero()  # (p, 2)
    if len(unsure):
        i, j = unsure.T
        scores[i, j] = pair_scores(queries[i], features[i, j], *[torch.arange(len(i))] * 2)
    return scores
