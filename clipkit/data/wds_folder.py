"""CLIP_benchmark's webdataset layout.

<root>/<split>/{0..N-1}.tar, with class names and templates beside it.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from clipkit.config.parts import suggest
from clipkit.data.bad_samples import BadSample
from clipkit.data.content_hash import files_hash
from clipkit.data.decode import check_shape, open_image
from clipkit.data.tar_index import TarIndex, load_indexes
from clipkit.errors import DataError

KINDS = ("classification", "multilabel", "retrieval")
_IMAGES = ("jpg", "jpeg", "png", "webp")
_MAX_BYTES = 50_000_000


@dataclass
class WdsFolder:
    """An evaluation set. Its samples stand in the order of their keys, however shards hold them.

    Attributes:
        root: Its folder.
        split: Folder or file prefix of its shards.
        kind: "classification", "multilabel" or "retrieval".
        classnames: One per class; empty for retrieval.
        templates: Prompts with {c}; empty for retrieval.
        indexes: One per shard.
    """

    root: Path
    split: str
    kind: str
    classnames: list[str]
    templates: list[str]
    indexes: list[TarIndex]

    def __len__(self) -> int:
        return sum(len(index) for index in self.indexes)

    @cached_property
    def keys(self) -> list[str]:
        """Key of every sample, in order; "shard/key" where two shards hold the same key."""
        keys = [str(self.indexes[shard].keys[sample]) for shard, sample in self._places]
        if len(set(keys)) == len(keys):
            return keys
        stems = [Path(index.path).stem for index in self.indexes]
        return [f"{stems[shard]}/{key}" for (shard, _), key in zip(self._places, keys)]

    @cached_property
    def _places(self) -> list[tuple[int, int]]:
        """(shard, sample in it), by key; equal keys by shard."""
        places = [(s, i) for s, index in enumerate(self.indexes) for i in range(len(index))]
        return sorted(places, key=lambda place: str(self.indexes[place[0]].keys[place[1]]))

    @property
    def place(self) -> str:
        """Where it lies."""
        return f"{self.root.absolute()}:{self.split}"

    @cached_property
    def identity(self) -> str:
        """Hash of the shards' bytes."""
        return files_hash([index.path for index in self.indexes])

    def images(self, start: int, stop: int, max_pixels: int = 50_000_000) -> Iterator[Image.Image]:
        """PIL images of samples start .. stop - 1, in order.

        Raises:
            DataError: An image is missing or unreadable; evaluation sets must be whole.
        """
        for index, sample in self._samples(start, stop):
            data = self._member(index, sample, _IMAGES)
            try:
                yield check_shape(open_image(data, max_pixels))
            except BadSample as error:
                raise DataError(f"{index.path}: sample '{index.keys[sample]}': {error}") from None

    def labels(self) -> list[int]:
        """Class of every sample.

        Raises:
            DataError: A label is missing, no number, or outside the class names.
        """
        labels = []
        for index, sample in self._samples(0, len(self)):
            text = self._member(index, sample, ("cls",))
            try:
                label = int(text)
            except ValueError:
                label = -1
            if not 0 <= label < len(self.classnames):
                raise DataError(
                    f"{index.path}: sample '{index.keys[sample]}': label {text[:20]!r} "
                    f"is not one of {len(self.classnames)} classes in classnames.txt"
                )
            labels.append(label)
        return labels

    def label_sets(self) -> np.ndarray:
        """(n, C) bool: which classes each sample has, from its multi-hot .npy member.

        Raises:
            DataError: A member is missing, no array of C numbers, or a sample has other values
                than 0 and 1.
        """
        out = np.zeros((len(self), len(self.classnames)), dtype=bool)
        for row, (index, sample) in zip(out, self._samples(0, len(self))):
            data = self._member(index, sample, ("npy",))
            try:
                values = np.load(io.BytesIO(data), allow_pickle=False).reshape(-1)
                whole = values.shape == row.shape and bool(np.isin(values, (0, 1)).all())
            except Exception:  # numpy's parser raises a dozen kinds on hostile bytes
                whole = False
            if not whole:
                raise DataError(
                    f"{index.path}: sample '{index.keys[sample]}': its .npy is no row of "
                    f"{len(row)} zeros and ones"
                )
            row[:] = values.astype(bool)
        return out

    def captions(self) -> list[list[str]]:
        """Captions of every sample, one per line of its txt member."""
        out = []
        for index, sample in self._samples(0, len(self)):
            text = self._member(index, sample, ("txt",)).decode("utf-8", "replace")
            captions = [line.strip() for line in text.split("\n") if line.strip()]
            if not captions:
                raise DataError(f"{index.path}: sample '{index.keys[sample]}' has no caption")
            out.append(captions)
        return out

    def _samples(self, start: int, stop: int) -> Iterator[tuple[TarIndex, int]]:
        for shard, sample in self._places[start:stop]:
            yield self.indexes[shard], sample

    @staticmethod
    def _member(index: TarIndex, sample: int, wanted: tuple[str, ...]) -> bytes:
        found = index.member(sample, wanted)
        if found is None or found[2] > _MAX_BYTES:
            what = "no" if found is None else "an oversized"
            raise DataError(
                f"{index.path}: sample '{index.keys[sample]}' "
                f"has {what} .{'/.'.join(wanted)} member"
            )
        with open(index.path, "rb") as file:
            return os.pread(file.fileno(), found[2], found[1])


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text: {error}") from None


def _lines(path: Path) -> list[str]:
    """Lines of a text file; only a line feed ends one, or a name would shift all labels after it.

    Raises:
        DataError: A line in the middle is blank.
    """
    lines = [line.strip() for line in _text(path).rstrip().split("\n")]
    if "" in lines[:-1]:
        raise DataError(f"{path}: line {lines.index('') + 1} is blank; each line is one entry")
    return lines if lines != [""] else []


def open_folder(root: str | Path, split: str = "test", kind: str | None = None) -> WdsFolder:
    """Open an evaluation set: <root>/<split>/*.tar, else <root>/<split>-*.tar.

    Raises:
        DataError: The folder, its shards, its class names or its templates are missing, or it is
            of another kind than asked for.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"evaluation set '{root}': no such folder")
    folder = root / split
    if folder.is_dir():
        number = folder / "nshards.txt"
        paths = sorted(folder.glob("*.tar"))
        if number.is_file() and re.fullmatch(r"[0-9]{1,7}", text := _text(number).strip()):
            count = int(text)  # one too many is missing, however many more are claimed
            paths = [folder / f"{i}.tar" for i in range(min(count, len(paths) + 1))]
    else:
        paths = sorted(root.glob(f"{split}-*.tar"))
    missing = [p for p in paths if not p.is_file()]
    if not paths or missing:
        raise DataError(
            f"evaluation set '{root}': {missing[0] if missing else f'{split} shards'} not found"
        )
    indexes = load_indexes([str(p) for p in paths])
    damaged = next((i for i in indexes if i.damage or not len(i)), None)
    if damaged is not None:  # an empty index is falsy
        raise DataError(
            f"evaluation set '{root}': {damaged.path} is damaged: {damaged.damage or 'no samples'}"
        )
    twice = next((i for i in indexes if len(np.unique(i.keys)) < len(i)), None)
    if twice is not None:
        raise DataError(f"evaluation set '{root}': {twice.path} holds a key twice; write it again")
    kind_file = root / "dataset_type.txt"
    found = _text(kind_file).strip() if kind_file.is_file() else "classification"
    if found not in KINDS:
        raise DataError(f"{kind_file}: unknown type '{found[:40]}'{suggest(found, list(KINDS))}")
    if kind not in (None, found):
        raise DataError(f"evaluation set '{root}' is of type {found}, not {kind}; use its task")
    if found == "retrieval":
        return WdsFolder(root, split, found, [], [], indexes)
    names, templates = root / "classnames.txt", root / "zeroshot_classification_templates.txt"
    for file in (names, templates):
        if not file.is_file() or not _lines(file):
            what = "empty" if file.is_file() else "missing"
            raise DataError(
                f"evaluation set '{root}': {file.name} is {what}; write one line per entry"
            )
    return WdsFolder(root, split, found, _lines(names), _lines(templates), indexes)
