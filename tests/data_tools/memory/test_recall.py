"""Recall against a recount in plain numpy."""

from __future__ import annotations

import numpy as np
import torch

from clipkit.retrieval.memory.stored_side import StoredSide, unit_rows
from data_tools.memory import recall as module
from data_tools.memory.faiss_index import build_index
from data_tools.memory.recall import recall, sampled_rows, true_scores
from tests.data_tools.memory.cells import features_of

STORED = features_of(600, 16).astype(np.float16)
UNIT = unit_rows(STORED, slice(None)).astype(np.float64)


def side(kind: str, rows: np.ndarray | None = None, nprobe: int = 1) -> StoredSide:
    index = build_index(STORED, np.arange(600) if rows is None else rows, kind=kind, nlist=12)
    return StoredSide(STORED, index, rows=rows, exact=kind == "flat", nprobe=nprobe)


def recount(found: torch.Tensor, queries: np.ndarray, own: np.ndarray, k: int) -> float:
    """By sets of rows; no two scores are equal here."""
    hits = 0
    for rows, query, self_row in zip(found.tolist(), queries, own):
        order = [int(j) for j in np.argsort(-(UNIT @ query)) if j != self_row][:k]
        hits += len(set(order) & {j for j in rows if j >= 0})
    return hits / (k * len(own))


def test_recall_equals_a_recount(monkeypatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 100)
    own = sampled_rows(np.arange(600), 50, seed=3)
    queries = torch.from_numpy(UNIT[own.numpy()]).float()
    seen = []
    for nprobe in (1, 3, 12):
        ivf = side("ivf_sq8", nprobe=nprobe)
        truth = true_scores(ivf, queries, own, 10)
        _, found = ivf.search(queries, 10, lambda n, s, r: r != own[n][:, None])
        measured = recall(ivf, queries, own, truth)
        assert abs(measured - recount(found, UNIT[own.numpy()], own.numpy(), 10)) < 1e-12
        seen.append(measured)
    assert seen[0] < seen[1] < seen[2] and seen[0] < 0.6
    assert recall(side("flat"), queries, own, truth) == 1.0


def test_true_scores_leave_out_the_query_itself_and_rows_that_are_not_held() -> None:
    held = np.arange(0, 600, 3)
    flat = side("flat", held)
    own = torch.tensor([0, 3, 4])
    truth = true_scores(flat, torch.from_numpy(UNIT[own.numpy()]).float(), own, 5)
    for line, row in zip(truth, own.tolist()):
        scores = sorted((float(UNIT[j] @ UNIT[row]) for j in held if j != row), reverse=True)
        np.testing.assert_allclose(line.numpy(), scores[:5], atol=1e-6)


def test_fewer_rows_than_neighbours() -> None:
    flat = side("flat", np.array([7, 9]))
    own = torch.tensor([7])
    queries = torch.from_numpy(UNIT[own.numpy()]).float()
    truth = true_scores(flat, queries, own, 10)
    assert int(truth.isfinite().sum()) == 1 and recall(flat, queries, own, truth) == 1.0
    alone = side("flat", np.array([7]))
    truth = true_scores(alone, queries, own, 10)
    assert recall(alone, queries, own, truth) == 1.0


def test_rows_are_drawn_by_seed() -> None:
    rows = np.arange(5, 100)
    assert torch.equal(sampled_rows(rows, 9, 0), sampled_rows(rows, 9, 0))
    assert not torch.equal(sampled_rows(rows, 9, 0), sampled_rows(rows, 9, 1))
    assert sampled_rows(rows, 500, 0).tolist() == rows.tolist()
