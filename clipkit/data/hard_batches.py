"""Hard batches: a sample's near neighbours trained in the same batch, as each other's negatives.

The order is permuted inside windows of whole global batches and nowhere else, so that any position
is still reached directly and every sample still comes exactly as often. With one source the last
window of an epoch is shorter, so that an epoch holds the samples it would hold without. The sources
of a mixture end their epochs where they will: a window there holds the end of one epoch of a source
and the begin of the next, so that a sample may come twice before another has come once.

Letters: N samples, k neighbours of each, M samples of a window, B global batch.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipkit.data.numbering import difference, read_shards, shards_of
from clipkit.data.sources import Source
from clipkit.errors import ConfigError, DataError

_CHUNK = 1 << 16  # rows of the neighbours held at once
_REMEDY = "run clipkit-data mine over the shards of this run, in their order"


def notes_path(path: str | Path) -> Path:
    """Of mined neighbours: beside them, with the shards they count."""
    return Path(f"{path}.json")


def check_shards(path: str | Path, sources: Sequence[Source]) -> None:
    """See that mined neighbours, where they have notes, are of the shards of these sources.

    Raises:
        DataError: Names the first that is another, or the notes are damaged.
    """
    notes = notes_path(path)
    if not notes.is_file():
        return
    try:
        own = read_shards(json.loads(notes.read_text(encoding="utf-8"))["shards"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{notes}: is damaged ({error!r}); run clipkit-data mine anew") from None
    what = difference(own, shards_of(sources))
    if what:
        raise DataError(f"{path}: neighbours of other data: {what}; {_REMEDY}")


class HardBatches:
    """A permutation of each window of global batches that brings neighbours together.

    Args:
        neighbours: (N, k) integers, or a memmap of them: ids of the samples nearest to each
            sample, nearest first, -1 for none.
        group: A sample comes with up to group - 1 of its neighbours.
        batches: Global batches of a window, at most; neighbours further apart do not meet.
        seed: Of the shuffle within batches.

    Raises:
        ConfigError: A group or a window of one.
        DataError: Not an (N, k) array of integers.
    """

    def __init__(self, neighbours: np.ndarray, *, group: int, batches: int, seed: int) -> None:
        if group < 2 or batches < 2:
            raise ConfigError(
                f"data.hard_batches: group={group}, batches={batches} changes nothing; "
                f"give both at least 2"
            )
        if neighbours.ndim != 2 or neighbours.dtype.kind not in "iu":
            raise DataError(
                f"data.hard_batches.neighbours is {neighbours.dtype} {neighbours.shape}; "
                f"give integers of shape (samples, neighbours)"
            )
        self.neighbours, self.group, self.batches, self.seed = neighbours, group, batches, seed
        digest, self._least, self._most = hashlib.sha256(repr(neighbours.shape).encode()), -1, -1
        for start in range(0, len(neighbours) if neighbours.size else 0, _CHUNK):
            block = np.ascontiguousarray(neighbours[start : start + _CHUNK], dtype="<i8")
            digest.update(block.data)
            self._least = min(self._least, int(block.min()))
            self._most = max(self._most, int(block.max()))
        self._digest = digest.hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        """A mapped file goes to a worker as its path: pickled, it would be copied whole."""
        state, mapped = dict(self.__dict__), self.neighbours
        if isinstance(mapped, np.memmap) and isinstance(mapped.base, mmap.mmap):
            order = "F" if mapped.flags.fnc else "C"
            state["neighbours"] = (
                mapped.filename,
                mapped.dtype,
                mapped.offset,
                mapped.shape,
                order,
            )
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self.neighbours, tuple):
            path, dtype, offset, shape, order = self.neighbours
            self.neighbours = np.memmap(path, dtype, "r", offset, shape, order)

    def check(self, num_samples: int) -> None:
        """Hold the neighbours against the data set.

        Raises:
            DataError: Another number of samples, or ids that are none.
        """
        if len(self.neighbours) != num_samples:
            raise DataError(
                f"data.hard_batches.neighbours is of {len(self.neighbours)} samples, "
                f"the data set has {num_samples}; {_REMEDY}"
            )
        if self._least < -1 or self._most >= num_samples:
            wrong = self._least if self._least < -1 else self._most
            raise DataError(
                f"data.hard_batches.neighbours names sample {wrong}, the data set has ids 0 to "
                f"{num_samples - 1} (-1: none); {_REMEDY}"
            )

    def permutation(self, window: int, ids: np.ndarray, batch: int) -> np.ndarray:
        """Order of one window: entry p is the index into `ids` of the sample trained at place p.

        Args:
            window: Number of the window.
            ids: (M,) int64 samples in their order without hard batches, M a multiple of B; one may
                come twice (in a mixture, where a source's epoch ends).
            batch: B.
        """
        packed = _pack(self._groups(ids, min(self.group, batch)), batch)
        # Groups stand in rows of one rank; shuffled, every rank has as many of them.
        generator = np.random.Generator(np.random.PCG64([self.seed, 3, window]))
        return generator.permuted(np.array(packed).reshape(-1, batch), axis=1).ravel()

    def _groups(self, ids: np.ndarray, size: int) -> list[list[int]]:
        """Each yet free sample, in order, with its nearest free neighbours of the window."""
        free = [True] * len(ids)
        groups = []
        for head, near in enumerate(self._near(ids)):
            if not free[head]:
                continue
            free[head] = False
            members = [head]
            for other in near:
                if other >= 0 and free[other] and len(members) < size:
                    free[other] = False
                    members.append(other)
            groups.append(members)
        return groups

    def _near(self, ids: np.ndarray) -> Iterator[list[int]]:
        """For each sample the indices into `ids` of its neighbours, -1 if not in the window."""
        known, index = np.unique(ids, return_index=True)
        for start in range(0, len(ids), _CHUNK):
            near = np.asarray(self.neighbours[ids[start : start + _CHUNK]], dtype=np.int64)
            at = np.minimum(np.searchsorted(known, near), len(known) - 1)
            yield from np.where(known[at] == near, index[at], -1).tolist()

    def parameters(self) -> dict[str, Any]:
        """What must be equal for a position to mean the same sample; JSON."""
        return {
            "neighbours": self._digest,
            "group": self.group,
            "batches": self.batches,
            "seed": self.seed,
        }


def _pack(groups: list[list[int]], batch: int) -> list[int]:
    """Groups, which come by rising head, one after the other and none across two batches.

    Where the next one does not fit, later samples without a group fill the batch before their turn;
    where none of these is left, the group is cut.
    """
    packed: list[int] = []
    singles = (members[0] for members in groups if len(members) == 1)
    early: set[int] = set()
    for members in groups:
        if members[0] in early:
            continue
        if len(members) > batch - len(packed) % batch:
            for single in singles:
                if single > members[0]:
                    early.add(single)
                    packed.append(single)
                    if len(packed) % batch == 0:
                        break
        packed.extend(members)
    return packed
