"""Mined hard negatives: the window, the loader's ids, and a loader that trains on them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from clipkit.data.hard_batches import HardBatches
from clipkit.data.loader import IndexedLoader
from clipkit.data.mixture import Mixture
from clipkit.data.order import Order
from clipkit.data.sources import ShardSource
from clipkit.errors import DataError
from data_tools.mine import run as module
from data_tools.mine.run import MineOptions, mine_neighbours
from tests.data.indexed_loaders import take
from tests.data_tools.memory.cells import embed_by_hand, features_of
from tests.fixtures_shards import number_tokenizer, small_reader, write_shards

TOTAL, SKIPPED = 64, (4, 33, 63)
CAPTIONS = [["", "Same ", "same"][i % 9] if i % 9 < 3 else f"c{i}" for i in range(TOTAL)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples i and i + 32 are alike, in both modalities, but for a little."""
    root = tmp_path_factory.mktemp("mine")
    paths = write_shards(root / "in", [20, 19, 25])
    sides = []
    for seed in (0, 1):
        found = features_of(TOTAL, seed=seed)
        found[32:] = found[:32] + 0.2 * features_of(32, seed=seed + 10)
        sides.append(found)
    np.save(root / "images.npy", sides[0])
    np.save(root / "texts.npy", sides[1])
    embed_by_hand(root / "emb", paths, *sides, CAPTIONS, SKIPPED)
    return root


def slow(place: Path, options: MineOptions) -> list[list[int]]:
    """Sample ids, by all scores of plain numpy."""
    features = np.load(place / f"{options.by}s.npy")
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float16)
    features = features.astype(np.float64)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    used = [i for i in range(TOTAL) if i not in SKIPPED and (options.by == "image" or CAPTIONS[i])]
    found = []
    for i in range(TOTAL):
        order = sorted((j for j in used if j != i), key=lambda j: -features[i] @ features[j])
        kept = [
            j
            for rank, j in enumerate(order)
            if rank >= options.skip_rank
            and (
                options.max_similarity is None
                or features[i] @ features[j] <= options.max_similarity
            )
            and (not CAPTIONS[i] or CAPTIONS[i].strip().lower() != CAPTIONS[j].strip().lower())
        ]
        kept = kept[: options.k] if i in used else []
        found.append(kept + [-1] * (options.k - len(kept)))
    return found


@pytest.mark.parametrize(
    "options",
    [
        MineOptions(),
        MineOptions("image", 5),
        MineOptions("image", 4, skip_rank=3),
        MineOptions("text", 4, max_similarity=0.5),
        MineOptions("image", 60, skip_rank=2, max_similarity=0.3),
    ],
)
def test_equals_a_slow_search(
    place: Path, tmp_path: Path, options: MineOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLOCK", 10)
    facts = mine_neighbours(place / "emb", tmp_path / "out.npy", options)
    found, expected = np.load(tmp_path / "out.npy"), np.array(slow(place, options))
    assert found.dtype == np.int64 and found.shape == (TOTAL, options.k)
    assert np.array_equal(found, expected)
    left = (expected >= 0).sum(axis=1)
    rows = [i for i in range(TOTAL) if i not in SKIPPED]
    assert facts["counts"]["embedded"] == 61 and facts["samples"] == TOTAL
    assert facts["counts"][f"with {options.k} neighbours"] == (left[rows] == options.k).sum()
    assert facts["counts"]["with none"] == (left[rows] == 0).sum()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.npy", "out.npy.json"]
    said = json.loads((tmp_path / "out.npy.json").read_text())
    assert [s["rows"] for s in said["shards"]] == [20, 19, 25] and said["shards"][0]["index"]
    assert said["arguments"]["by"] == options.by


def test_the_largest_similarity_itself_is_kept(tmp_path: Path) -> None:
    rows = np.array([[1, 1, 1, 1], [1, 1, 1, -1], [1, 1, -1, -1]])  # cosines of 0.5, and one of 0
    emb = embed_by_hand(tmp_path / "emb", write_shards(tmp_path / "in", [3]), rows, rows)
    for most, expected in ((0.5, [[1, 2], [0, 2], [1, 0]]), (0.49, [[2, -1], [-1, -1], [0, -1]])):
        options = MineOptions("image", 2, max_similarity=most)
        mine_neighbours(emb, tmp_path / "out.npy", options)
        assert np.load(tmp_path / "out.npy").tolist() == expected


def test_an_approximate_index_serves_many_samples(place: Path, tmp_path: Path) -> None:
    mine_neighbours(place / "emb", tmp_path / "out.npy", MineOptions("image", 3, flat_below=0))
    found = np.load(tmp_path / "out.npy")
    exact = np.array(slow(place, MineOptions("image", 3)))
    assert (found == exact).mean() > 0.5 and not (found == np.arange(TOTAL)[:, None]).any()


def test_a_loader_puts_the_mined_together(place: Path, tmp_path: Path) -> None:
    mine_neighbours(place / "emb", tmp_path / "out.npy", MineOptions("image", 3))
    paths = [str(place / "in" / f"00{i}.tar") for i in range(3)]
    source = ShardSource(paths)
    neighbours = np.load(tmp_path / "out.npy", mmap_mode="r")
    hard = HardBatches(neighbours, group=2, batches=8, seed=0)
    order = Order(source.counts, seed=0, global_batch_size=8)
    together = {}
    for name, rule in (("hard", hard), ("plain", None)):
        mixture = Mixture([order], seed=0, global_batch_size=8, hard=rule)
        loader = IndexedLoader([source], mixture, small_reader(), number_tokenizer)
        batches = [batch.ids.tolist() for batch in take(loader, 8)]
        assert sorted(sum(batches, [])) == list(range(TOTAL))
        twins = [i for i in range(32) if not {i, i + 32} & set(SKIPPED)]
        together[name] = np.mean(
            [any({i, i + 32} <= set(batch) for batch in batches) for i in twins]
        )
    assert together["hard"] > 0.8 > 0.5 > together["plain"]


def test_refusals_leave_nothing_behind(place: Path, tmp_path: Path) -> None:
    assert mine_neighbours(place / "emb", tmp_path / "a" / "out.npy", dry_run=True)["samples"] == 64
    with pytest.raises(DataError, match="out: name a file that ends in .npy"):
        mine_neighbours(place / "emb", tmp_path / "out")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="out.npy: cannot be written"):
        mine_neighbours(place / "emb", tmp_path / "file" / "out.npy")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_another_file_of_that_name_stays(place: Path, tmp_path: Path) -> None:
    for text in ('{"format": "other"}', "[]", "not json"):
        (tmp_path / "out.npy.json").write_text(text)
        with pytest.raises(DataError, match="out.npy.json: is no file of clipkit-data mine"):
            mine_neighbours(place / "emb", tmp_path / "out.npy", dry_run=True)
        assert (tmp_path / "out.npy.json").read_text() == text
    (tmp_path / "out.npy.json").unlink()
    for k in (2, 3):  # its own is replaced
        mine_neighbours(place / "emb", tmp_path / "out.npy", MineOptions(k=k))
        said = json.loads((tmp_path / "out.npy.json").read_text())
        assert said["arguments"]["k"] == k == np.load(tmp_path / "out.npy").shape[1]


def test_cut_short_no_file_describes_another_one(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine_neighbours(place / "emb", tmp_path / "out.npy", MineOptions(k=2))

    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_text", full)
    with pytest.raises(DataError, match="No space left"):
        mine_neighbours(place / "emb", tmp_path / "out.npy", MineOptions(k=3))
    assert not (tmp_path / "out.npy.json").exists()
