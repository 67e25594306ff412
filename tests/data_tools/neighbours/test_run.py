"""Neighbours of samples: the right ones, under the loader's ids, and never the sample itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch

from clipkit.errors import CheckpointError, DataError
from clipkit.retrieval.memory import FolderMemory, open_memory
from data_tools.memory.build import build_memory
from data_tools.memory.sources import open_sources
from data_tools.neighbours import run as module
from data_tools.neighbours.run import NeighbourOptions, find_neighbours, own_rows
from tests.data_tools.memory.cells import embed_by_hand, features_of
from tests.fixtures_shards import write_shards
from tests.retrieval.memory.cells import slow_search

TOTAL, SKIPPED = 60, (4, 33, 59)
CAPTIONS = [f"c{i}" if i % 6 else "" for i in range(TOTAL)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """emb: 60 samples of three shards; more: others, two of which are near-copies of 7 and 20."""
    root = tmp_path_factory.mktemp("neighbours")
    paths = write_shards(root / "in", [20, 15, 25])
    images, texts = features_of(TOTAL), features_of(TOTAL, seed=1)
    embed_by_hand(root / "emb", paths, images, texts, CAPTIONS, SKIPPED)
    other = write_shards(root / "other", [0, 0, 0, 30])
    more = features_of(30, seed=2)
    more[3], more[11] = 3 * images[7] + 0.01, 2 * images[20]
    embed_by_hand(root / "more", other, more, features_of(30, seed=3))
    build_memory(open_sources([root / "emb", root / "more"]), root / "memory")
    return root


def rows_of_samples() -> dict[int, int]:
    """Sample id -> row of the memory; this data set stands first in it."""
    return {i: row for row, i in enumerate(i for i in range(TOTAL) if i not in SKIPPED)}


@pytest.mark.parametrize("search", ["uni", "cross"])
@pytest.mark.parametrize("allow_self", [False, True])
def test_equals_a_slow_search(place: Path, tmp_path: Path, search: str, allow_self: bool) -> None:
    options = NeighbourOptions(5, search, 0.9, allow_self)
    find_neighbours(place / "emb", place / "memory", tmp_path / "out", options)
    memory = FolderMemory(place / "memory")
    ids = rows_of_samples()
    rows = torch.tensor(list(ids.values()))
    queries = {side: memory.features(side, rows) for side in ("image", "text")}
    for query in ("image", "text"):
        side = query if search == "uni" else {"image": "text", "text": "image"}[query]
        rule = (rows.numpy(), 0.9, queries["image"])
        _, expected = slow_search(
            memory, queries[query], side, 5, *((None, None, None) if allow_self else rule)
        )
        found = np.load(tmp_path / "out" / f"{query}.npy")
        assert found.shape == (TOTAL, 5) and found.dtype == np.int64
        for place_, sample in enumerate(ids):
            has = query == "image" or CAPTIONS[sample]
            wanted = expected[place_].tolist() if has else [-1] * 5
            assert found[sample].tolist() == wanted, (query, sample)
        assert (found[list(SKIPPED)] == -1).all()


def test_neither_the_sample_nor_its_copies_come_back(place: Path, tmp_path: Path) -> None:
    own = rows_of_samples()
    copies = {7: 57 + 3, 20: 57 + 11}
    leak = NeighbourOptions(8, max_similarity=None, allow_self=True)
    facts = find_neighbours(place / "emb", place / "memory", tmp_path / "closed",
                            NeighbourOptions(8))  # fmt: skip
    find_neighbours(place / "emb", place / "memory", tmp_path / "leak", leak)
    closed, open_ = (
        {side: np.load(tmp_path / name / f"{side}.npy") for side in ("image", "text")}
        for name in ("closed", "leak")
    )
    for sample, row in own.items():
        for side in ("image", "text"):
            assert row not in closed[side][sample]
            assert side == "text" and not CAPTIONS[sample] or open_[side][sample, 0] == row
    for sample, row in copies.items():
        assert row in open_["image"][sample]
        assert row not in closed["image"][sample] and row not in closed["text"][sample]
    assert facts["share of samples with near-duplicates"] == round(2 / 28, 4)  # of a file


def test_the_sample_itself_is_told_by_its_name(place: Path, tmp_path: Path) -> None:
    options = NeighbourOptions(8, max_similarity=None)
    find_neighbours(place / "emb", place / "memory", tmp_path / "out", options)
    for side in ("image", "text"):
        found = np.load(tmp_path / "out" / f"{side}.npy")
        assert all(row not in found[sample] for sample, row in rows_of_samples().items())
    assert np.load(tmp_path / "out" / "image.npy")[7, 0] == 57 + 3  # its copy is another row


def test_what_is_said_of_them(place: Path, tmp_path: Path) -> None:
    facts = find_neighbours(place / "emb", place / "memory", tmp_path / "out",
                            NeighbourOptions(100, "cross"))  # fmt: skip
    found = json.loads((tmp_path / "out" / "neighbours.json").read_text())
    memory = FolderMemory(place / "memory")
    assert (found["k"], found["search"], found["memory"]) == (100, "cross", memory.name)
    assert found["weights_hash"] == "w" and found["samples"] == TOTAL
    assert [(Path(s["path"]).name, s["rows"]) for s in found["shards"]] == [
        ("000.tar", 20), ("001.tar", 15), ("002.tar", 25),
    ]  # fmt: skip
    assert found["max_similarity"] == 0.98 and found["allow_self"] is False
    assert facts["counts"] == {
        "embedded": 57, "with a caption": 47,
        "image: samples with fewer": 57, "text: samples with fewer": 47,
    }  # fmt: skip
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["tool"] == "neighbours"


def test_several_memories_and_blocks_change_nothing(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_memory(open_sources([place / "emb"]), tmp_path / "m0")
    build_memory(open_sources([place / "more"]), tmp_path / "m1")
    find_neighbours(place / "emb", place / "memory", tmp_path / "one")
    monkeypatch.setattr(module, "_BLOCK", 7)
    find_neighbours(place / "emb", str(tmp_path / "m?"), tmp_path / "two")
    for side in ("image", "text"):
        ours, theirs = (np.load(tmp_path / name / f"{side}.npy") for name in ("one", "two"))
        assert np.array_equal(ours, theirs)
    said = json.loads((tmp_path / "two" / "neighbours.json").read_text())["memory"]
    assert said == open_memory(str(tmp_path / "m?")).name


def test_own_rows_by_file_name_and_key() -> None:
    def table(shards: list[str], keys: list[str]) -> pyarrow.Table:
        return pyarrow.table({"shard": shards, "key": keys})

    memory = table(["/x/0.tar", "/x/1.tar", "/y/0.tar", "/y/2.tar"], ["a", "a", "a", "b"])
    mine = table(["/z/0.tar", "/z/1.tar", "/z/2.tar", "/z/2.tar"], ["a", "a", "a", "b"])
    assert own_rows(mine, memory).tolist() == [[0, 2], [1, -1], [-1, -1], [3, -1]]
    assert own_rows(mine[2:3], memory).tolist() == [[-1]]


def test_refusals_leave_nothing_behind(place: Path, tmp_path: Path) -> None:
    paths = [str(place / "in" / f"00{i}.tar") for i in range(3)]
    other = embed_by_hand(tmp_path / "emb", paths, weights_hash="x")
    with pytest.raises(CheckpointError, match="memory: was built with other weights"):
        find_neighbours(other, place / "memory", tmp_path / "out")
    facts = find_neighbours(place / "emb", place / "memory", tmp_path / "out", dry_run=True)
    assert facts["samples"] == TOTAL
    assert [p.name for p in tmp_path.iterdir()] == ["emb"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(DataError, match="out exists"):
        find_neighbours(place / "emb", place / "memory", tmp_path / "out")
