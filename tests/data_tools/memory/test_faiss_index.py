"""Flat and IVF indexes hold the rows they were given, and a seed draws the lists."""

from __future__ import annotations

import numpy as np
import pytest

from clipkit.retrieval.memory.stored_side import unit_rows
from data_tools.memory import faiss_index
from data_tools.memory.faiss_index import FLAT, IVF, build_index, default_lists
from tests.data_tools.memory.cells import features_of


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss_index, "BLOCK", 70)


STORED = features_of(400, 16).astype(np.float16)
ROWS = np.sort(np.random.default_rng(0).choice(400, 333, replace=False))


def test_a_flat_index_holds_unit_rows_in_their_order() -> None:
    done: list[int] = []
    index = build_index(STORED, ROWS, kind=FLAT, tick=done.append)
    assert sum(done) == index.ntotal == 333 and len(done) == 5
    assert np.array_equal(index.reconstruct_n(0, 333), unit_rows(STORED, ROWS))


def test_inverted_lists_by_seed() -> None:
    query = unit_rows(features_of(9, 16, 5).astype(np.float16), slice(None))
    made = [build_index(STORED, ROWS, kind=IVF, nlist=7, seed=seed) for seed in (0, 0, 1)]
    found = []
    for index in made:
        assert (index.ntotal, index.nlist) == (333, 7)
        index.nprobe = 1
        found.append(index.search(query, 20)[1])
    assert np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])
    made[0].nprobe = 7
    exact = np.argsort(-(query @ unit_rows(STORED, ROWS).T), axis=1, kind="stable")
    assert (made[0].search(query, 1)[1] == exact[:, :1]).mean() > 0.8  # 8 bits a number


def test_lists_by_rows() -> None:
    assert [default_lists(n) for n in (1, 38, 100, 1000, 10**6)] == [1, 1, 2, 25, 4000]
