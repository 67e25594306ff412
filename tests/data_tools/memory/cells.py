"""Embeddings of real shards, written by hand: sample i of all has row i of given features."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as parquet

from clipkit.data.content_hash import file_hash
from clipkit.data.tar_index import load_index
from clipkit.eval.embedding_folder import FORMAT, features_path, metadata_path


def features_of(n: int, dim: int = 8, seed: int = 0) -> np.ndarray:
    """(n, dim)."""
    return np.random.default_rng(seed).normal(size=(n, dim))


def embed_by_hand(
    root: Path,
    paths: Sequence[str],
    images: np.ndarray | None = None,
    texts: np.ndarray | None = None,
    captions: Sequence[str] | None = None,
    skip: Collection[int] = (),
    **facts: object,
) -> Path:
    """A folder as `clipkit embed` writes it, in two files; samples in `skip` have no row."""
    indexes = [load_index(path) for path in paths]
    total = sum(map(len, indexes))
    places = [(p, r) for p, index in enumerate(indexes) for r in range(len(index))]
    captions = captions or [f"caption {i}" for i in range(total)]
    features = {
        "image": features_of(total) if images is None else images,
        "text": features_of(total, seed=1) if texts is None else texts,
    }
    rows = [i for i in range(total) if i not in skip]
    parts = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    for number, part in enumerate(parts):
        for side, values in features.items():
            path = features_path(root, side, number)
            path.parent.mkdir(parents=True, exist_ok=True)
            unit = values[part] / np.linalg.norm(values[part], axis=1, keepdims=True)
            np.save(path, unit.astype(np.float16))
        table = {
            "key": [indexes[places[i][0]].key(places[i][1]) for i in part],
            "caption": [captions[i] for i in part],
            "has_caption": [captions[i] != "" for i in part],
            "shard": [paths[places[i][0]] for i in part],
            "sample": pyarrow.array([places[i][1] for i in part], pyarrow.int64()),
        }
        path = metadata_path(root, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.table(table), path)
    index = {
        "format": FORMAT,
        "checkpoint": "c",
        "weights_hash": "w",
        "precision": "fp32",
        "key": f"key of {root.name}",
        "dim": features["image"].shape[1],
        "rows": len(rows),
        "text": True,
        "file_rows": [len(part) for part in parts],
        "shards": [
            {"path": path, "sha256": file_hash(path), "samples": len(index)}
            for path, index in zip(paths, indexes)
        ],
        **facts,
    }
    (root / "index.json").write_text(json.dumps(index))
    return root
