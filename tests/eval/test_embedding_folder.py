"""Reading a folder of embeddings: rows across files, and every damage named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest

from clipkit.errors import CheckpointError, DataError
from clipkit.eval.embedding_folder import (
    FORMAT,
    features_path,
    is_own,
    metadata_path,
    open_embeddings,
)


def write_folder(root: Path, images, texts=None, captions=None, lengths=None, group=2, **facts):
    """A folder by hand, in plain numpy and pyarrow; `lengths` splits the rows into files."""
    lengths = lengths or [len(images)]
    captions = captions or [f"caption {i}" for i in range(len(images))]
    for number, (stop, n) in enumerate(zip(np.cumsum(lengths), lengths)):
        rows = slice(int(stop) - n, int(stop))
        for side, features in (("image", images), ("text", texts)):
            if features is not None:
                path = features_path(root, side, number)
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, np.asarray(features)[rows].astype(np.float16))
        table = {
            "key": [f"k{i}" for i in range(rows.start, rows.stop)],
            "caption": captions[rows],
            "has_caption": [c != "" for c in captions[rows]],
            "shard": [f"/shards/{i}.tar" for i in range(rows.start, rows.stop)],
            "sample": list(range(rows.start, rows.stop)),
        }
        path = metadata_path(root, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.table(table), path, row_group_size=group)
    index = {
        "format": FORMAT,
        "checkpoint": "c",
        "weights_hash": "w",
        "precision": "fp32",
        "key": "k",
        "dim": int(np.asarray(images).shape[1]),
        "rows": len(images),
        "text": texts is not None,
        "file_rows": list(lengths),
        **facts,
    }
    (root / "index.json").write_text(json.dumps(index))
    return root


@pytest.fixture
def rows():
    return np.random.default_rng(0).normal(size=(9, 4))


def test_rows_over_files_blocks_and_row_groups(tmp_path, rows):
    folder = open_embeddings(write_folder(tmp_path, rows, rows[::-1], lengths=[5, 0, 3, 1]))
    folder.check()
    half = rows.astype(np.float16).astype(np.float32)
    unit = half / np.linalg.norm(half, axis=1, keepdims=True)
    for size in (1, 2, 3, 100):
        starts, blocks = zip(*folder.blocks("image", size))
        assert all(len(b) <= size for b in blocks) and blocks[0].dtype == np.float32
        assert list(starts) == np.cumsum([0, *map(len, blocks)])[:-1].tolist()
        np.testing.assert_allclose(np.concatenate(blocks), unit, rtol=1e-6)
    wanted = [8, 0, 5, 4, 7, 0]
    found = folder.metadata(wanted)
    assert [f["key"] for f in found] == [f"k{i}" for i in wanted]
    assert [f["sample"] for f in found] == wanted
    np.testing.assert_allclose(
        np.concatenate([b for _, b in folder.blocks("text")]), unit[::-1], rtol=1e-6
    )


def test_rows_of_zeros_stay_zeros(tmp_path):
    folder = open_embeddings(write_folder(tmp_path, np.zeros((2, 4))))
    assert np.array_equal(next(folder.blocks("image"))[1], np.zeros((2, 4)))


def test_sides_and_captions(tmp_path, rows):
    captions = ["a", "", "b", "", "", "c", "d", "e", ""]
    folder = open_embeddings(
        write_folder(tmp_path / "a", rows, rows, captions=captions, lengths=[4, 5])
    )
    assert folder.sides() == ("image", "text")
    assert folder.has_caption.tolist() == [c != "" for c in captions]
    bare = open_embeddings(write_folder(tmp_path / "b", rows))
    assert bare.sides() == ("image",)
    with pytest.raises(DataError, match="no captions"):
        next(bare.blocks("text"))


def test_no_index_or_none_of_ours(tmp_path, rows):
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(DataError, match="no index there; write one with clipkit embed"):
            open_embeddings(path)
    index = write_folder(tmp_path / "x", rows) / "index.json"
    for text in ("{", "[]", "{}", '{"format": "other"}', "[" * 100_000, b"\xff"):
        index.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(DataError, match=r"index.json"):
            open_embeddings(tmp_path / "x")


@pytest.mark.parametrize(
    "facts",
    [
        {"dim": "4"},
        {"rows": 10},
        {"file_rows": [10, -1]},
        {"file_rows": ["9"]},
        {"key": None},
        {"refinements": "x"},
    ],
)
def test_damaged_facts(tmp_path, rows, facts):
    with pytest.raises(DataError, match=f"{next(iter(facts))}|file_rows"):
        open_embeddings(write_folder(tmp_path, rows, **facts))


def test_damaged_files_are_named(tmp_path, rows):
    def refused(words: str) -> None:
        with pytest.raises(DataError, match=words):
            open_embeddings(tmp_path).check()

    write_folder(tmp_path, rows, dim=5)
    refused(r"img_emb_0.npy: holds float16 \(9, 4\), not float \(9, 5\)")
    write_folder(tmp_path, rows, rows=8, file_rows=[8])
    refused("img_emb_0.npy")
    image = features_path(write_folder(tmp_path, rows), "image", 0)
    np.save(image, rows.astype(np.int64))
    refused("int64")
    np.save(image, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    refused("img_emb_0.npy: cannot be read")
    image.unlink()
    refused("img_emb_0.npy: cannot be read")
    table = metadata_path(write_folder(tmp_path, rows), 0)
    parquet.write_table(parquet.read_table(table).slice(0, 5), table)
    refused("metadata_0.parquet: 5 rows, not 9")
    table.write_bytes(b"PAR1 no table")
    refused("metadata_0.parquet: cannot be read")


def test_nothing_is_unpickled(tmp_path, rows):
    folder = write_folder(tmp_path, rows, lengths=[9, 0])  # an empty file is read, not mapped
    np.save(features_path(folder, "image", 1), np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="img_emb_1.npy: cannot be read"):
        open_embeddings(folder).check()
    assert not Trap.sprung


class Trap:
    """Notes that it was unpickled."""

    sprung = False

    def __setstate__(self, state):
        Trap.sprung = True

    def __getstate__(self):
        return {"a": 1}


def test_own_means_marked_and_nothing_else_inside(tmp_path, rows):
    assert is_own(write_folder(tmp_path, rows))
    (tmp_path / "search.html").write_text("x")
    assert is_own(tmp_path)
    (tmp_path / "more.txt").write_text("x")
    assert not is_own(tmp_path)
    (tmp_path / "more.txt").unlink()
    (tmp_path / "index.json").write_text('{"format": "other"}')
    assert not is_own(tmp_path)
    assert not is_own(tmp_path / "absent")


def test_refinements_are_those_of_the_index_and_of_the_checkpoint(tmp_path, rows):
    plain = open_embeddings(write_folder(tmp_path / "plain", rows))  # as before there were any
    assert plain.refinements == []
    plain.check_refinements([], "embed again")
    folder = open_embeddings(write_folder(tmp_path / "refined", rows, refinements=["a", "b"]))
    folder.check_refinements(["a", "b"], "embed again")
    for names, words in (([], "a \\+ b, those of the checkpoint by none"), (["b", "a"], "by b")):
        with pytest.raises(CheckpointError, match=f"refined by .*{words}.*; embed again"):
            folder.check_refinements(names, "embed again")
