"""Turn folders of images, one folder a class, into an evaluation set of tar shards.

SOURCE/<split>/<class>/*.jpg for the splits train and test, or SOURCE/<class>/*.jpg, of which a
share can be cut off as train.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from clipkit.data.bad_samples import BadSample
from clipkit.data.decode import open_image
from clipkit.data.wds_write import Sample, write_folder
from clipkit.errors import DataError

SPLITS = ("train", "test")
TEMPLATES = ("a photo of a {c}.",)
_SUFFIXES = {".jpg": "jpg", ".jpeg": "jpg", ".png": "png", ".webp": "webp"}
_MAX_PIXELS = 50_000_000  # what the reader of evaluation sets takes

Labelled = list[tuple[Path, int]]


def write_wds(
    source: Path,
    out: Path,
    *,
    templates: tuple[str, ...] = TEMPLATES,
    train_share: float = 0.0,
    seed: int = 0,
    samples_per_shard: int = 10_000,
) -> dict[str, int]:
    """Write the splits of `source` to `out`, which appears in one rename.

    Class names are the folders' names, sorted, "_" read as a blank. Other files are left out.

    Args:
        source: Holds `train` and `test`, or one of them, or class folders.
        out: Folder to create.
        templates: Prompts with {c}.
        train_share: Where `source` holds class folders: share of each class that becomes train.
        seed: Draws that share.
        samples_per_shard: Samples in every shard but the last.

    Returns:
        Split -> samples.

    Raises:
        DataError: `out` is there, `source` holds no images in class folders, or one is unreadable.
    """
    if not 0 <= train_share < 1:
        raise DataError(f"--train-share {train_share}: choose at least 0 and less than 1")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DataError(f"{out} exists: name a new or an empty folder, or remove it")
    folders, splits = _find_splits(source, train_share, seed)
    classnames = [folder.replace("_", " ") for folder in folders]
    out = Path(os.path.abspath(out))
    staging = out.with_name(f"{out.name}.tmp-{os.getpid()}")
    try:
        counts = {
            split: write_folder(
                staging,
                split,
                _samples(files),
                classnames=classnames,
                templates=templates,
                samples_per_shard=samples_per_shard,
            )
            for split, files in splits.items()
        }
        if out.exists():
            out.rmdir()
        staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return counts


def _find_splits(
    source: Path, train_share: float, seed: int
) -> tuple[list[str], dict[str, Labelled]]:
    """(class folders, split -> labelled files), sorted."""
    if not source.is_dir():
        raise DataError(f"{source}: no such folder")
    roots = {split: source / split for split in SPLITS if _is_split(source / split)}
    if roots and train_share:
        raise DataError(f"{source} has its own {' and '.join(roots)}: leave --train-share out")
    found = {split: _classes(root) for split, root in (roots or {"test": source}).items()}
    names = sorted({name for classes in found.values() for name in classes})
    empty = [str(roots.get(split, source)) for split in found if not found[split]]
    if empty:
        raise DataError(
            f"{empty[0]}: holds no class folders with {' '.join(_SUFFIXES)} images; lay them out "
            f"as {source}/test/<class>/<image> or {source}/<class>/<image>"
        )
    splits = {
        split: [(path, names.index(name)) for name in names for path in classes.get(name, [])]
        for split, classes in found.items()
    }
    if train_share:
        splits = _cut(splits["test"], train_share, seed)
    return names, splits


def _is_split(folder: Path) -> bool:
    """Whether a folder named as a split is one, and not a class of that name ("train")."""
    return folder.is_dir() and not any(p.suffix.lower() in _SUFFIXES for p in folder.iterdir())


def _classes(root: Path) -> dict[str, list[Path]]:
    """Class folder -> its images, at any depth; folders without images are left out."""
    classes = {}
    for folder in sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")):
        files = sorted(
            p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES and p.is_file()
        )
        if files:
            classes[folder.name] = files
    return classes


def _cut(files: Labelled, share: float, seed: int) -> dict[str, Labelled]:
    """A share of each class is train; every class keeps an image to test."""
    train: Labelled = []
    for label in sorted({label for _, label in files}):
        own = [item for item in files if item[1] == label]
        chosen = min(round(share * len(own)), len(own) - 1)
        train += random.Random(f"{seed} {label}").sample(own, chosen)
    if not train:
        raise DataError(f"--train-share {share} leaves no image to train; choose a larger one")
    kept = set(train)
    return {"train": sorted(train), "test": [item for item in files if item not in kept]}


def _samples(files: Labelled) -> Iterator[Sample]:
    for path, label in files:
        try:
            data = path.read_bytes()
            open_image(data, _MAX_PIXELS)
        except (OSError, BadSample) as error:
            raise DataError(f"{path}: cannot be read as an image: {error}; remove it") from None
        yield {_SUFFIXES[path.suffix.lower()]: data, "cls": b"%d" % label}
