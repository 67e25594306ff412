"""Images and captions of any shards, in the order of the shards, for embedding.

An image that cannot be read does not end the pass: a grey one takes its place, so that every row
keeps its number, and the cause is noted by row.

Shapes: n samples, S shards.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from clipkit.data.bad_samples import BadSample
from clipkit.data.content_hash import file_hash
from clipkit.data.decode import check_shape, open_image
from clipkit.data.eval_sets import types_of
from clipkit.data.shards import expand_shards, is_url
from clipkit.data.tar_index import TarIndex, load_indexes
from clipkit.dist.collectives import all_reduce_max
from clipkit.dist.group import World
from clipkit.errors import DataError

CAUSES = (
    "no_image",
    "too_many_bytes",
    "too_many_pixels",
    "extreme_shape",
    "unreadable_image",
    "too_many_scans",
)
UNSEEN, GOOD = 0, 1  # codes of a row; 2 and up: GOOD + 1 + number of the cause
_IMAGES = ("jpg", "jpeg", "png", "webp")
_CAPTIONS = ("txt",)
_MAX_BYTES = 50_000_000
_MAX_PIXELS = 50_000_000
_MAX_CAPTION = 65_536  # bytes; the tokenizer cuts far earlier
_PLACEHOLDER = (128, 128, 128)


class ShardImages:
    """Samples start .. stop - 1 of shards laid end to end: an image source that keeps bad rows.

    Args:
        indexes: One per shard.
        hashes: sha256 of each shard.
        start: First sample.
        stop: One behind the last; None: all.
    """

    def __init__(
        self,
        indexes: Sequence[TarIndex],
        hashes: Sequence[str],
        start: int = 0,
        stop: int | None = None,
    ) -> None:
        self.indexes, self.hashes = list(indexes), list(hashes)
        self._ends = np.cumsum([len(index) for index in self.indexes])
        self.start = start
        self.stop = int(self._ends[-1]) if stop is None else stop
        self.codes = np.zeros(len(self), dtype=np.int64)

    def __len__(self) -> int:
        return self.stop - self.start

    def part(self, start: int, stop: int) -> ShardImages:
        """Rows start .. stop - 1 of this source as a source of their own."""
        first = self.start + start
        return ShardImages(self.indexes, self.hashes, first, min(self.start + stop, self.stop))

    def locate(self, row: int) -> tuple[int, int]:
        """(shard, sample in it) of a row."""
        position = self.start + row
        shard = int(np.searchsorted(self._ends, position, side="right"))
        return shard, position - int(self._ends[shard]) + len(self.indexes[shard])

    @property
    def place(self) -> str:
        """Where it lies."""
        paths = "\0".join(os.path.abspath(index.path) for index in self.indexes)
        return f"shards:{hashlib.sha256(paths.encode()).hexdigest()}:{self.start}:{self.stop}"

    @cached_property
    def identity(self) -> str:
        """Hash of the shards that these samples lie in, and of where in them."""
        pieces, row = [], 0
        while row < len(self):
            shard, sample = self.locate(row)
            count = min(len(self.indexes[shard]) - sample, len(self) - row)
            pieces.append(f"{self.hashes[shard]}:{sample}:{count}")
            row += count
        return hashlib.sha256("\n".join(pieces).encode()).hexdigest()

    def images(self, start: int, stop: int) -> Iterator[Image.Image]:
        """RGB images of rows start .. stop - 1, a grey one for each that is bad; notes their codes.

        Raises:
            DataError: A shard is gone.
        """
        for row in range(start, stop):
            try:
                image, code = self._open(row), GOOD
            except BadSample as error:
                image, code = Image.new("RGB", (64, 64), _PLACEHOLDER), cause_code(error.cause)
            self.codes[row] = code
            yield image

    def _open(self, row: int) -> Image.Image:
        shard, sample = self.locate(row)
        return read_image(self.indexes[shard], sample)

    def settle(self, world: World) -> None:
        """Know of every row, on every rank, whether its image is good.

        Rows that no rank has opened (their features came from a cache) are opened here, dealt to
        the ranks. All ranks must call.
        """
        self._share(world)
        mine = np.flatnonzero(self.codes == UNSEEN)[world.rank :: world.world_size]
        with ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0)))) as pool:
            for _ in pool.map(lambda row: next(self.images(row, row + 1)).close(), mine.tolist()):
                pass
        self._share(world)

    def _share(self, world: World) -> None:
        codes = torch.from_numpy(self.codes).to(world.device)
        self.codes = all_reduce_max(codes, world.world_size).cpu().numpy().copy()

    def keys(self) -> list[str]:
        """Key of every row."""
        places = (self.locate(row) for row in range(len(self)))
        return [str(self.indexes[shard].keys[sample]) for shard, sample in places]

    @property
    def has_captions(self) -> bool:
        """Whether any of the shards holds a txt member."""
        return any(e in _CAPTIONS for index in self.indexes for e in index.extensions)

    def captions(self) -> list[str]:
        """Text of every row's txt member, whole, as training reads it; "" where there is none.

        Raises:
            DataError: A shard is gone.
        """
        out, row = [], 0
        while row < len(self):
            shard, first = self.locate(row)
            count = min(len(self.indexes[shard]) - first, len(self) - row)
            out += _captions(self.indexes[shard], range(first, first + count))
            row += count
        return out


def cause_code(cause: str) -> int:
    """Code of a row that is bad for this cause."""
    return GOOD + 1 + CAUSES.index(cause)


def cause_name(code: int) -> str:
    """Cause of a bad row's code."""
    return CAUSES[code - GOOD - 1]


def read_image(index: TarIndex, sample: int) -> Image.Image:
    """RGB image of a sample.

    Raises:
        BadSample: It has none, or none that can be used.
        DataError: The shard is gone.
    """
    member = index.member(sample, _IMAGES)
    if member is None:
        raise BadSample("no_image")
    if member[2] > _MAX_BYTES:
        raise BadSample("too_many_bytes", f"{member[2]} bytes")
    try:
        with open(index.path, "rb") as file:
            data = os.pread(file.fileno(), member[2], member[1])
    except OSError as error:
        raise DataError(f"shard '{index.path}' cannot be read: {error.strerror}") from None
    return check_shape(open_image(data, _MAX_PIXELS))


def _captions(index: TarIndex, samples: range) -> list[str]:
    out = []
    try:
        with open(index.path, "rb") as file:
            for sample in samples:
                found = index.member(sample, _CAPTIONS)
                size, offset = (min(found[2], _MAX_CAPTION), found[1]) if found else (0, 0)
                text = os.pread(file.fileno(), size, offset).decode("utf-8", "replace")
                out.append(text.replace("\0", " ").strip())
    except OSError as error:
        raise DataError(f"shard '{index.path}' cannot be read: {error.strerror}") from None
    return out


def find_shards(patterns: Sequence[str], split: str = "test") -> list[str]:
    """Paths of shards named by brace patterns, globs, files and folders, each once.

    A folder means the tars in it, or in <folder>/<split> where it has none itself; an evaluation
    set (classnames.txt or dataset_type.txt in it) means its split.

    Raises:
        DataError: Something matches nothing, is remote, or is named twice.
    """
    paths: list[str] = []
    for pattern in patterns:
        if os.path.isdir(pattern):
            paths += _in_folder(Path(pattern), split)
        else:
            paths += expand_shards([pattern], "SHARDS")
    if not paths:
        raise DataError("SHARDS: give at least one shard, pattern or folder")
    seen: set[str] = set()
    for path in paths:
        if is_url(path):
            raise DataError(f"SHARDS: '{path}' is remote; copy it to disk")
        if not _is_utf8(path):
            raise DataError(f"SHARDS: {path!r}: its name is no UTF-8 text; rename it")
        if os.path.realpath(path) in seen:
            raise DataError(f"SHARDS: '{path}' is named twice; name each shard once")
        seen.add(os.path.realpath(path))
    return paths


def _is_utf8(path: str) -> bool:
    try:
        return bool(path.encode())
    except UnicodeEncodeError:
        return False


def _in_folder(folder: Path, split: str) -> list[str]:
    in_split = sorted((folder / split).glob("*.tar"))
    if types_of(folder, split):
        found = in_split or sorted(folder.glob(f"{split}-*.tar"))
    else:
        found = sorted(folder.glob("*.tar")) or in_split
    if not found:
        raise DataError(
            f"SHARDS: folder '{folder}' holds no *.tar and no {split}/*.tar; "
            f"name another folder or another --split"
        )
    return [str(path) for path in found]


def open_shards(paths: Sequence[str]) -> tuple[list[TarIndex], list[str]]:
    """Indexes of the shards, and a line on each that is damaged or odd.

    Raises:
        DataError: A shard cannot be read or gives no sample at all.
    """
    indexes = load_indexes(list(paths))
    for index in indexes:
        if not len(index):
            raise DataError(
                f"shard '{index.path}' holds no samples"
                f"{f' ({index.damage})' if index.damage else ''}; mend it or leave it out"
            )
    notes = [f"{i.path}: {i.remarks}; {len(i)} samples are used" for i in indexes if i.remarks]
    return indexes, notes


def hash_shards(paths: Sequence[str], world: World) -> list[str]:
    """sha256 of each shard; each rank reads its share, all ranks get all.

    Raises:
        DataError: A shard cannot be read.
    """
    mine = list(range(world.rank, len(paths), world.world_size))
    table = torch.zeros(len(paths), 32, dtype=torch.int64)  # (S, bytes)
    try:
        with ThreadPoolExecutor(8) as pool:
            for row, text in zip(mine, pool.map(file_hash, [paths[i] for i in mine])):
                table[row] = torch.tensor(list(bytes.fromhex(text)))
    except OSError as error:
        raise DataError(f"shard '{error.filename}' cannot be read: {error.strerror}") from None
    shared = all_reduce_max(table.to(world.device), world.world_size).cpu()
    return [bytes(row).hex() for row in shared.tolist()]
