"""Scores are cosines of the stored features; fractions are exact and ties are broken by a hash."""

from pathlib import Path

import numpy as np
import pyarrow
import pytest

from clipkit.errors import DataError
from data_tools.filter.scores import clip_scores, keep_scored
from tests.data_tools.filter.pools import kept_keys, pool_of
from tests.data_tools.test_embeddings import PATHS
from tests.eval.test_embedding_folder import write_folder


def folder(root: Path, images: np.ndarray, texts: np.ndarray | None, **options) -> Path:
    """An embeddings folder whose row i is sample i of /shards/i.tar."""
    shards = [{"path": f"/shards/{i}.tar"} for i in range(len(images))]
    write_folder(root, images, texts, shards=shards, **options)
    return root


def scored(connection, values: list[float], **rule) -> dict:
    """keep_scored over samples k0 ..., dealt to two shards."""
    table = pyarrow.table(
        {
            "shard": [f"{i % 2}.tar" for i in range(len(values))],
            "row": [i // 2 for i in range(len(values))],
            "key": [f"k{i}" for i in range(len(values))],
            "clip_score": pyarrow.array(values, pyarrow.float32()),
        }
    )
    rule = {"fraction": None, "threshold": None, "seed": 0, **rule}
    return keep_scored(connection, table, "EMB", **rule)


def test_scores_are_cosines_in_double_precision(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images, texts = random.normal(size=(2, 40, 16))
    captions = [f"c{i}" if i % 7 else "" for i in range(40)]
    found = clip_scores(
        folder(tmp_path, images, texts, captions=captions, lengths=[25, 15])
    ).to_pydict()
    numbers = [i for i in range(40) if i % 7]
    a, b = (x.astype(np.float16).astype(np.float64) for x in (images, texts))
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(found["clip_score"], cosine[numbers], atol=2e-7)
    assert found["key"] == [f"k{i}" for i in numbers]
    assert found["shard"] == [f"{i}.tar" for i in numbers] and found["row"] == numbers


def test_folders_without_scores_are_refused(tmp_path: Path) -> None:
    images = np.eye(4)
    with pytest.raises(DataError, match="no captions"):
        clip_scores(folder(tmp_path / "a", images, None))
    images = images.copy()
    images[2, 2] = np.nan
    with pytest.raises(DataError, match="NaN"):
        clip_scores(folder(tmp_path / "b", images, images))
    assert PATHS  # names of the other tests' shards


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.3, 0.5, 1.0])
def test_exactly_the_best_fraction_stays(tmp_path: Path, fraction: float) -> None:
    values = np.random.default_rng(1).permutation(101) / 101
    connection = pool_of(tmp_path, ["c"] * 101)
    facts = scored(connection, values.tolist(), fraction=fraction)
    number = int(fraction * 101 + 0.5)
    best = np.argsort(-values)[:number]
    assert kept_keys(connection) == {f"k{i}" for i in best}
    assert facts["lowest_score"] == pytest.approx(values[best].min())
    assert (facts["scored"], facts["without_score"]) == (101, 0)


def test_ties_are_drawn_by_seed_and_key_not_by_place(tmp_path: Path) -> None:
    values = [0.9, *[0.5] * 60, 0.1]
    chosen = []
    for number, (shards, seed) in enumerate([(2, 0), (2, 0), (2, 1)]):
        connection = pool_of(tmp_path / str(number), ["c"] * 62, shards)
        scored(connection, values, fraction=0.5, seed=seed)
        chosen.append(kept_keys(connection))
    assert [len(keys) for keys in chosen] == [31, 31, 31]
    assert all("k0" in keys and "k61" not in keys for keys in chosen)
    assert chosen[0] == chosen[1] != chosen[2]
    middle = sum(int(key[1:]) for key in chosen[0]) / 31
    assert 20 < middle < 41  # not simply the first ones


def test_all_at_the_threshold_stay(tmp_path: Path) -> None:
    connection = pool_of(tmp_path, ["c"] * 4)
    facts = scored(connection, [0.3, 0.29999, 0.30001, -1.0], threshold=0.3)
    assert kept_keys(connection) == {"k0", "k2"}
    assert facts["lowest_score"] == pytest.approx(0.3)
    connection = pool_of(tmp_path / "b", ["c"] * 4)
    facts = scored(connection, [0.3] * 4, threshold=1e-7 + 1)
    assert kept_keys(connection) == set() and "lowest_score" not in facts


def test_samples_without_a_score_go(tmp_path: Path) -> None:
    connection = pool_of(tmp_path, ["c"] * 6)
    facts = scored(connection, [0.1, 0.2, 0.3, 0.4], fraction=0.5)
    assert kept_keys(connection) == {"k2", "k3"} and facts["without_score"] == 2
    assert connection.table("kept").columns == ["shard", "row", "key", "caption"]


def test_scores_of_other_samples_are_refused(tmp_path: Path) -> None:
    connection = pool_of(tmp_path, ["c"] * 4)
    other = {"shard": ["0.tar"], "row": [1], "key": ["z"], "clip_score": [0.5]}
    for change, message in (
        ({}, "'k2' in one and 'z' in the other"),
        ({"shard": ["9.tar"]}, "share no sample"),
    ):
        with pytest.raises(DataError, match=message):
            keep_scored(
                connection, pyarrow.table(other | change), "EMB",
                fraction=0.5, threshold=None, seed=0,
            )  # fmt: skip
