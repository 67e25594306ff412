"""Rows of embeddings and of memories, and which of them belong together."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest

from clipkit.errors import CheckpointError, DataError
from clipkit.eval.embedding_folder import metadata_path, open_embeddings
from data_tools.memory import sources
from data_tools.memory.build import build_memory
from data_tools.memory.sources import SCHEMA, EmbeddedRows, open_sources
from tests.data_tools.memory.cells import embed_by_hand, features_of
from tests.fixtures_shards import write_shards


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "BLOCK", 4)


def test_a_memory_gives_back_what_the_embeddings_gave(tmp_path: Path) -> None:
    paths = write_shards(tmp_path / "in", [5, 6])
    captions = [f"c{i}" if i != 3 else "" for i in range(11)]
    emb = embed_by_hand(tmp_path / "emb", paths, captions=captions, skip={2})
    build_memory(open_sources([emb]), tmp_path / "m")
    embedded, remembered = (open_sources(e, m)[0] for e, m in (([emb], None), ([], tmp_path / "m")))
    assert len(embedded) == len(remembered) == 10
    tables = [list(source.tables()) for source in (embedded, remembered)]
    assert all(table.schema.equals(SCHEMA) for parts in tables for table in parts)
    rows = [[r for table in parts for r in table.to_pylist()] for parts in tables]
    assert rows[0] == rows[1]
    assert rows[0][2] == {
        "shard": paths[0],
        "row": 3,
        "key": "000003",
        "caption": "",
        "has_caption": False,
    }
    for side, seed in (("image", 0), ("text", 1)):
        ours, theirs = (np.concatenate(list(s.blocks(side))) for s in (embedded, remembered))
        has = np.array([r["has_caption"] for r in rows[0]]) | (side == "image")
        assert np.array_equal(ours[has], theirs[has]) and ours.dtype == np.float16
        assert not theirs[~has].any()
        unit = features_of(11, seed=seed)[[i for i in range(11) if i != 2]]
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        np.testing.assert_allclose(ours, unit, atol=2e-3)


def change(emb: Path, **facts: object) -> Path:
    found = json.loads((emb / "index.json").read_text())
    (emb / "index.json").write_text(json.dumps({**found, **facts}))
    return emb


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    paths = write_shards(tmp_path / "in", [5])
    one, two = (embed_by_hand(tmp_path / name, paths) for name in ("one", "two"))
    change(two, weights_hash="x", checkpoint="d")
    with pytest.raises(CheckpointError, match=r"one \(c\) and .*two \(d\) come from different"):
        open_sources([one, two])
    build_memory(open_sources([one]), tmp_path / "m")
    with pytest.raises(CheckpointError, match=r"m \(c\) and .*two \(d\)"):
        open_sources([two], tmp_path / "m")
    change(two, weights_hash="w", refinements=["centring"])
    with pytest.raises(DataError, match="two: its features were refined"):
        open_sources([one, two])
    empty = embed_by_hand(tmp_path / "empty", paths, skip=range(5))
    with pytest.raises(DataError, match="empty: holds no rows"):
        open_sources([empty])


def test_damaged_tables_are_named(tmp_path: Path) -> None:
    emb = embed_by_hand(tmp_path / "emb", write_shards(tmp_path / "in", [5]))
    path = metadata_path(emb, 1)
    good = parquet.read_table(path)
    for damaged in (good.drop_columns(["sample"]), good[:1]):
        parquet.write_table(damaged, path)
        with pytest.raises(DataError, match="metadata_1.parquet"):
            list(EmbeddedRows(open_embeddings(emb)).tables())
    path.write_text("x")
    with pytest.raises(DataError, match="metadata_1.parquet: cannot be read"):
        list(EmbeddedRows(open_embeddings(emb)).tables())
