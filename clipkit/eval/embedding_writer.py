"""Embed the samples of shards into a folder: block by block, in place whole or not at all.

Shapes: D embed dim.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections import Counter
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
from torch import Tensor

from clipkit.checkpoint.files import flush, write_text
from clipkit.data.shard_images import GOOD, ShardImages, cause_name
from clipkit.errors import ConfigError, DataError
from clipkit.eval.embed import Embedder
from clipkit.eval.embedding_folder import (
    FORMAT,
    INDEX,
    EmbeddingFolder,
    features_path,
    is_own,
    metadata_path,
    open_embeddings,
)
from clipkit.eval.feature_cache import digest

_VERSION = "1"  # raise it when the same shards and weights would give other files
_GROUP = 8192  # rows of a parquet row group; a hit reads one


@dataclass
class Skipped:
    """Samples without a usable image, and how many there may be.

    Attributes:
        samples: Of the whole source.
        limit: Largest share of bad samples.
        causes: Cause -> samples.
        shards: Shard -> samples.
    """

    samples: int
    limit: float
    causes: Counter[str] = field(default_factory=Counter)
    shards: Counter[str] = field(default_factory=Counter)

    def add(self, block: ShardImages) -> None:
        """Count a settled block.

        Raises:
            DataError: Over the limit; names the causes and the worst shard.
        """
        for row in np.flatnonzero(block.codes != GOOD).tolist():
            self.causes[cause_name(int(block.codes[row]))] += 1
            self.shards[block.indexes[block.locate(row)[0]].path] += 1
        total = self.causes.total()
        if not total or (total <= self.limit * self.samples and total < self.samples):
            return
        worst, count = self.shards.most_common(1)[0]
        raise DataError(
            f"{total} of {self.samples} samples have no usable image ({self.text()}; worst shard: "
            f"{worst} with {count}), over --max-bad-fraction {self.limit}; mend the shards or "
            f"raise it"
            if total < self.samples
            else f"none of {self.samples} samples has a usable image ({self.text()}; first shard: "
            f"{block.indexes[0].path})"
        )

    def text(self) -> str:
        """ "3 unreadable_image, 1 no_image"."""
        return ", ".join(f"{count} {cause}" for cause, count in self.causes.most_common())


def embed_shards(
    model: Embedder,
    source: ShardImages,
    out: Path,
    *,
    checkpoint: str,
    arch: str | None = None,
    rows_per_file: int = 250_000,
    max_bad_fraction: float = 0.1,
    overwrite: bool = False,
) -> bool:
    """Write features of all images and captions; all ranks must call, rank 0 writes.

    Args:
        model: Encodes; its cache, if any, lets an interrupted pass go on.
        source: All samples.
        out: New or empty folder, or one that holds just these embeddings.
        checkpoint, arch: Where the model was loaded from, for index.json.
        rows_per_file: Samples of a file; memory grows with it.
        max_bad_fraction: Share of samples without a usable image that is an error.
        overwrite: Replace a folder of other embeddings.

    Returns:
        Whether anything was computed; False: the folder was up to date.

    Raises:
        DataError: Too many bad images, or a shard that went away.
        ConfigError: `out` holds something else, or cannot be written.
        NonFiniteResult: The model gives NaN or infinity.
    """
    world, out = model.world, out.resolve()
    facts = _facts(model, source, rows_per_file) | {"checkpoint": checkpoint, "arch": arch}
    fresh = world.is_main and _is_finished(out, facts["key"], overwrite)
    if world.broadcast_int(int(fresh)):
        return False
    writer = _Writer(out, facts) if world.is_main else None
    skipped = Skipped(len(source), max_bad_fraction)
    try:
        has_text = source.has_captions
        for start in range(0, len(source), rows_per_file):
            block = source.part(start, start + rows_per_file)
            rows = _embed_block(model, block, has_text, skipped)
            if writer:
                writer.add(block, rows)
        if writer:
            writer.finish(skipped)
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written: {error.strerror or error}") from None
    finally:
        if writer:
            shutil.rmtree(writer.root, ignore_errors=True)
    world.barrier()
    return True


@dataclass
class _Rows:
    """The good rows of a block: their numbers in it, captions and features."""

    numbers: list[int]
    captions: list[str]
    images: Tensor  # (rows, D)
    texts: Tensor | None  # (rows, D)


def _embed_block(model: Embedder, block: ShardImages, has_text: bool, skipped: Skipped) -> _Rows:
    # an embedder keeps what it embedded; one per block keeps no more than a block in memory
    own = model.refined_by(model.refinements)
    images = own.images(block)
    block.settle(model.world)
    skipped.add(block)
    numbers = np.flatnonzero(block.codes == GOOD).tolist()
    captions = block.captions()
    kept = [captions[row] for row in numbers]
    texts = own.texts(kept) if has_text and kept else None
    if has_text and texts is None:
        texts = images[:0]
    return _Rows(numbers, kept, images[numbers], texts)


def _facts(model: Embedder, source: ShardImages, rows_per_file: int) -> dict[str, Any]:
    """What the embeddings depend on, and "key", its hash."""
    encoder = model.encoder
    paths = [os.path.abspath(index.path) for index in source.indexes]
    facts = {
        "weights_hash": encoder.weights_hash,
        "transform_hash": encoder.transform_hash,
        "tokenizer_hash": encoder.tokenizer_hash,
        "precision": encoder.precision,
    }
    names = [refinement.name for refinement in model.refinements]
    refined = {"refinements": "\n".join(names)} if names else {}
    key = digest(
        version=_VERSION,
        data=source.identity,
        paths="\0".join(paths),
        rows_per_file=str(rows_per_file),
        **facts,
        **refined,
    )
    return {
        "format": FORMAT,
        **facts,
        "refinements": names,
        "key": key,
        "shards": [
            {"path": path, "sha256": sha, "samples": len(index)}
            for path, sha, index in zip(paths, source.hashes, source.indexes)
        ],
        "damaged_shards": {
            path: index.damage for path, index in zip(paths, source.indexes) if index.damage
        },
        "versions": {
            "clipkit": version("clipkit"),
            "torch": version("torch"),
            "open_clip": version("open_clip_torch"),
            "pillow": version("pillow"),
            "numpy": version("numpy"),
            "pyarrow": version("pyarrow"),
            "python": platform.python_version(),
        },
    }


def _is_finished(out: Path, key: str, overwrite: bool) -> bool:
    """Whether `out` holds these embeddings already.

    Raises:
        ConfigError: It holds something else.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file; name a folder")
    if not out.exists() or not any(out.iterdir()):
        return False
    if not is_own(out):
        raise ConfigError(
            f"{out}: is not empty and not written by clipkit embed; name a new folder"
        )
    try:
        folder = open_embeddings(out)
        folder.check()
    except DataError:
        return False  # damaged: written again
    if folder.facts["key"] == key:
        return True
    if not overwrite:
        raise ConfigError(
            f"{out}: holds embeddings of other shards, weights or settings; "
            f"name a new folder or give --overwrite"
        )
    return False


class _Writer:
    """Fills a hidden folder beside `out` and moves it into place."""

    def __init__(self, out: Path, facts: dict[str, Any]) -> None:
        self.out, self.facts = out, facts
        self.root = out.with_name(f".{out.name}.partial")
        self.file_rows: list[int] = []
        self.without_caption, self.dim, self.text = 0, 0, False
        try:
            shutil.rmtree(self.root, ignore_errors=True)
            (self.root / "metadata").mkdir(parents=True)
        except OSError as error:
            raise ConfigError(f"{out}: cannot be written: {error.strerror}") from None

    def add(self, block: ShardImages, rows: _Rows) -> None:
        """Write the files of one block."""
        number = len(self.file_rows)
        for side, features in (("image", rows.images), ("text", rows.texts)):
            if features is not None:
                path = features_path(self.root, side, number)
                path.parent.mkdir(exist_ok=True)
                with open(path, "wb") as file:
                    np.save(file, features.half().numpy(), allow_pickle=False)
                flush(path)
        self._write_metadata(metadata_path(self.root, number), block, rows)
        self.file_rows.append(len(rows.numbers))
        self.without_caption += rows.captions.count("")
        self.dim, self.text = rows.images.shape[1], rows.texts is not None

    @staticmethod
    def _write_metadata(path: Path, block: ShardImages, rows: _Rows) -> None:
        keys, places = block.keys(), [block.locate(row) for row in rows.numbers]
        paths = [os.path.abspath(index.path) for index in block.indexes]
        table = pyarrow.table(
            {
                "key": pyarrow.array([keys[row] for row in rows.numbers], pyarrow.string()),
                "caption": pyarrow.array(rows.captions, pyarrow.string()),
                "has_caption": pyarrow.array([c != "" for c in rows.captions], pyarrow.bool_()),
                "shard": pyarrow.array([paths[shard] for shard, _ in places], pyarrow.string()),
                "sample": pyarrow.array([sample for _, sample in places], pyarrow.int64()),
            }
        )
        parquet.write_table(table, path, row_group_size=_GROUP)
        flush(path)

    def finish(self, skipped: Skipped) -> None:
        """Write index.json last, then put the folder in place."""
        counts = {
            "dim": self.dim,
            "rows": sum(self.file_rows),
            "file_rows": self.file_rows,
            "text": self.text,
            "without_caption": self.without_caption,
            "samples": skipped.samples,
            "skipped": dict(skipped.causes),
            "skipped_shards": dict(skipped.shards),
        }
        write_text(self.root / INDEX, json.dumps({**self.facts, **counts}, indent=1))
        EmbeddingFolder(self.root, {**self.facts, **counts}).check()
        old = self.out.with_name(f".{self.out.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if self.out.exists():
            os.rename(self.out, old)
        os.rename(self.root, self.out)
        flush(self.out.parent)
        shutil.rmtree(old, ignore_errors=True)
