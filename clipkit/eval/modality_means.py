"""Fit a calibration: the means of a model's modalities on data that is not scored.

Shapes: b items of a block, D embed dim.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clipkit.data.content_hash import file_hash
from clipkit.data.eval_sets import types_of
from clipkit.data.mixed_set import Item, open_mixed_set
from clipkit.data.shard_images import GOOD, ShardImages, find_shards, hash_shards, open_shards
from clipkit.data.wds_folder import KINDS, WdsFolder, open_folder
from clipkit.errors import CheckpointError, DataError
from clipkit.eval.embed import Embedder
from clipkit.eval.embedding_folder import INDEX, EmbeddingFolder, open_embeddings
from clipkit.retrieval.calibration import Calibration

_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")  # what no line of words holds
Blocks = Callable[[], Iterator[Tensor]]  # (b, D) unit rows, from the first one at each call


@dataclass(frozen=True)
class CalibrationSet:
    """Features that means are fitted on.

    Attributes:
        images: Of all images.
        texts: Of their captions, of a class's prompts, or of a search set's texts.
        queries: Of a search set's queries; None where the set has none.
        files: sha256 of each file they come from.
    """

    images: Blocks
    texts: Blocks
    queries: Blocks | None
    files: frozenset[str]


@dataclass(frozen=True)
class Fit:
    """A calibration, and what it does to the very features it was fitted on.

    Attributes:
        calibration: The means.
        gap: Distance between the modalities' means.
        gap_after: The same after centring; not 0, as features are made unit again.
        asked: Whose the query means are, for people.
    """

    calibration: Calibration
    gap: float
    gap_after: float
    asked: str


def fit_calibration(
    model: Embedder, place: str, *, split: str = "test", queries: str | None = None
) -> Fit:
    """Fit on all of a set; all ranks must call. Some thousand items are plenty.

    Args:
        model: Encodes; its refinements, if any, come before the centring.
        place: An evaluation set, shards, a search set, or a folder of embeddings.
        split: Of a folder that is an evaluation set.
        queries: Where texts worded as queries are: a file with one a line, or an evaluation set;
            None: the set's own queries, else all its texts.

    Raises:
        DataError: Nothing there, or nothing of one modality.
        CheckpointError: Embeddings of other weights or refinements.
    """
    data = _open(model, place, split)
    asked, files = data.queries or data.texts, data.files
    words = "the set's own" if data.queries else "the texts; --queries names others"
    if queries is not None:
        words = queries
        asked, read = _queries(model, queries, split)
        files |= read
    sides = {"query_text": asked, "text": data.texts, "image": data.images}
    means, counts = {}, {}
    for name, blocks in sides.items():
        means[name], counts[name] = _mean(blocks(), f"{place}: {name.replace('_', ' ')}")
    calibration = Calibration(
        **means,
        weights_hash=model.encoder.weights_hash,
        refinements=tuple(r.name for r in model.refinements),
        counts=counts,
        data=place,
        files=files,
    )
    return Fit(calibration, *_gaps(data, calibration), asked=words)


def scored_files(root: Path, split: str) -> set[str]:
    """sha256 of each file that scores on an evaluation set rest on.

    Raises:
        DataError: It has no such split.
    """
    return {file_hash(path) for path in _files(root, split)}


def _files(root: Path, split: str) -> list[str]:
    """Shards, and the items of a search set."""
    items = [str(root / f"{name}.jsonl") for name in ("queries", "mixed_corpus")]
    return items if Path(items[1]).is_file() else find_shards([str(root)], split)


def _mean(blocks: Iterator[Tensor], what: str) -> tuple[Tensor, int]:
    """(D,) fp64 mean of rows, and their number."""
    total: Tensor | None = None
    count = 0
    for rows in blocks:
        count += len(rows)
        part = rows.double().sum(dim=0)
        total = part if total is None else total + part
    if total is None or not count:
        raise DataError(f"{what}: there are none; a calibration needs images and texts")
    return total / count, count


def _gaps(data: CalibrationSet, calibration: Calibration) -> tuple[float, float]:
    raw = calibration.documents
    changes = {"image": (data.images, raw.image), "text": (data.texts, raw.text)}
    centred = []
    for blocks, mean in changes.values():
        unit = (torch.nn.functional.normalize(rows.double() - mean) for rows in blocks())
        centred.append(_mean(unit, "")[0])
    return float((raw.image - raw.text).norm()), float((centred[0] - centred[1]).norm())


def _open(model: Embedder, place: str, split: str) -> CalibrationSet:
    root = Path(place)
    if (root / INDEX).is_file():
        return _of_embeddings(model, open_embeddings(root))
    types = types_of(root, split) if root.is_dir() else ()
    if "mixed_search" in types:
        return _of_search_set(model, root, split)
    if set(types) & set(KINDS):
        folder = open_folder(root, split)
        texts = _whole(model.texts(_texts_of(folder)))
        return CalibrationSet(_whole(model.images(folder)), texts, None, _hashes(root, split))
    return _of_shards(model, find_shards([place], split))


def _whole(rows: Tensor) -> Blocks:
    return lambda: iter([rows])


def _hashes(root: Path, split: str) -> frozenset[str]:
    return frozenset(scored_files(root, split))


def _texts_of(folder: WdsFolder) -> list[str]:
    """Captions of all images, or all prompts of all classes."""
    if folder.kind == "retrieval":
        return [text for captions in folder.captions() for text in captions]
    return [t.replace("{c}", name) for name in folder.classnames for t in folder.templates]


def _of_embeddings(model: Embedder, folder: EmbeddingFolder) -> CalibrationSet:
    theirs, ours = folder.facts["weights_hash"], model.encoder.weights_hash
    if theirs != ours:
        raise CheckpointError(
            f"{folder.root}: was written with weights {theirs[:12]}, the checkpoint has "
            f"{ours[:12]}; embed again with clipkit embed"
        )
    folder.check_refinements(
        [r.name for r in model.refinements], "embed again, or give the same --memory options"
    )
    folder.check_side("text")

    def blocks(side: str) -> Iterator[Tensor]:
        for first, rows in folder.blocks(side):
            kept = slice(None) if side == "image" else folder.has_caption[first:][: len(rows)]
            yield torch.from_numpy(rows[kept])

    files = frozenset(str(shard["sha256"]) for shard in folder.facts.get("shards", ()))
    return CalibrationSet(lambda: blocks("image"), lambda: blocks("text"), None, files)


def _of_search_set(model: Embedder, root: Path, split: str) -> CalibrationSet:
    data = open_mixed_set(root, split)
    images = model.images(data.image_files)
    pictures = [data.image_files.index(item.image) for item in data.documents if item.image]
    texts = model.texts(_worded(data.documents, root))
    asked = model.texts(_worded(data.queries, root))
    return CalibrationSet(
        _whole(images[pictures]), _whole(texts), _whole(asked), _hashes(root, split)
    )


def _worded(items: Sequence[Item], root: Path) -> list[str]:
    texts = [item.text for item in items if item.text]
    if not texts:
        raise DataError(f"{root}: no query or no document has a text; a calibration needs both")
    return texts


def _of_shards(model: Embedder, paths: list[str]) -> CalibrationSet:
    hashes = hash_shards(paths, model.world)
    source = ShardImages(open_shards(paths)[0], hashes)
    images = model.images(source)
    source.settle(model.world)
    texts = [text for text in source.captions() if text]
    if not texts:
        raise DataError(
            f"{paths[0]}: no sample has a caption; a calibration needs images and texts"
        )
    good = torch.from_numpy(np.flatnonzero(source.codes == GOOD))
    return CalibrationSet(_whole(images[good]), _whole(model.texts(texts)), None, frozenset(hashes))


def _queries(model: Embedder, place: str, split: str) -> tuple[Blocks, frozenset[str]]:
    """Features of the queries of a file or set, and the files read."""
    path = Path(place)
    if path.is_file():
        try:
            content = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"--queries {path}: cannot be read: {str(error)[:200]}") from None
        if _CONTROL.search(content):
            raise DataError(f"--queries {path}: is no text; write one query a line")
        lines = (line.strip() for line in content.split("\n"))
        texts, files = [line for line in lines if line], frozenset([file_hash(path)])
    else:
        texts = _texts_asked(path, split)
        files = _hashes(path, split)
    if not texts:
        raise DataError(f"--queries {path}: is empty; write one query a line")
    return _whole(model.texts(texts)), files


def _texts_asked(root: Path, split: str) -> list[str]:
    if (root / "mixed_corpus.jsonl").is_file():
        return _worded(open_mixed_set(root, split).queries, root)
    return _texts_of(open_folder(root, split))
