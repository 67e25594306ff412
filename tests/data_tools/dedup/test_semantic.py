"""SemDeDup's properties, and its verdicts against a plain loop."""

import numpy as np
import pytest

from data_tools.dedup.semantic import default_clusters, repeats, same_meaning


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def noisy(seed: int = 0, count: int = 300, dim: int = 16) -> np.ndarray:
    """Groups of near rows."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(count // 5, dim))
    picked = centres[rng.integers(0, len(centres), count)]
    return unit(picked + rng.normal(size=(count, dim)) * rng.choice([0.02, 0.1, 0.3], (count, 1)))


def slow(items: np.ndarray, eps: float, greedy: bool) -> list[int]:
    of = []
    for j in range(len(items)):
        cosines = [
            min(float(items[i] @ items[j]), 1.0) if not greedy or of[i] < 0 else -np.inf
            for i in range(j)
        ]
        near = cosines and max(cosines) > 1 - eps
        of.append(int(np.argmax(cosines)) if near else -1)
    return of


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("eps", [0.01, 0.1, 0.5])
def test_verdicts_are_those_of_a_loop(
    eps: float, greedy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = noisy()
    for block in (64, 1024):
        monkeypatch.setattr("data_tools.dedup.semantic._BLOCK", block)
        of, distance = repeats(items, eps, greedy)
        assert of.tolist() == slow(items, eps, greedy)
        hit = of >= 0
        cosines = (items[hit] * items[of[hit]]).sum(axis=1)
        np.testing.assert_allclose(distance[hit], 1 - cosines, atol=1e-6)


def test_a_chain_drops_both_unless_greedy() -> None:
    angles = np.array([0.0, 0.3, 0.6])
    chain = unit(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    eps = 1 - np.cos(0.4)
    assert repeats(chain, eps, greedy=False)[0].tolist() == [-1, 0, 1]
    assert repeats(chain, eps, greedy=True)[0].tolist() == [-1, 0, -1]


def test_below_zero_all_stay_and_of_equal_ones_exactly_one() -> None:
    # far apart but for the repeats
    rng = np.random.default_rng(1)
    apart = unit(np.linalg.qr(rng.normal(size=(32, 32)))[0])
    items = apart[np.concatenate([np.arange(32), rng.integers(0, 32, 60)])]
    for keep in ("hard", "easy", "random"):
        options = {"clusters": 4, "keep": keep}
        for eps in (-1e-9, -0.5):
            assert (same_meaning(items, eps=eps, **options)[0] < 0).all()
        of, distance = same_meaning(items, eps=1e-4, **options)
        kept = items[of < 0]
        assert len(kept) == 32 and len(np.unique(kept.round(3), axis=0)) == 32
        assert distance[of >= 0].max() < 1e-5


@pytest.mark.parametrize("greedy", [False, True])
def test_fewer_stay_as_eps_grows(greedy: bool) -> None:
    items, options = noisy(2), {"clusters": 5, "greedy": greedy}
    kept = [
        set(np.flatnonzero(same_meaning(items, eps=eps, **options)[0] < 0))
        for eps in (0.0, 0.01, 0.05, 0.2, 0.6)
    ]
    assert [len(k) for k in kept] == sorted((len(k) for k in kept), reverse=True)
    assert len(kept[-1]) < len(kept[0])
    if not greedy:
        assert all(b <= a for a, b in zip(kept, kept[1:]))


def test_keep_hard_keeps_the_one_far_from_the_centroid() -> None:
    rng = np.random.default_rng(3)
    items = unit(np.array([1.0, 0, 0]) + rng.normal(size=(40, 3)) * 0.05)
    centroid = items.mean(axis=0) / np.linalg.norm(items.mean(axis=0))
    closeness = items @ centroid
    for keep, expected in (("hard", closeness.argmin()), ("easy", closeness.argmax())):
        of, _ = same_meaning(items, eps=0.9, clusters=1, keep=keep)
        assert np.flatnonzero(of < 0).tolist() == [expected]


def test_the_same_every_time_and_another_choice_by_seed() -> None:
    items, done = noisy(4), []
    options = {"eps": 0.05, "clusters": 6, "keep": "random"}
    one, two = (same_meaning(items, seed=1, **options)[0] for _ in range(2))
    assert one.tolist() == two.tolist()
    other = same_meaning(items, seed=2, tick=done.append, **options)[0]
    assert one.tolist() != other.tolist() and sum(done) == len(items)
    assert len(same_meaning(items[:3], eps=0.1, clusters=9)[0]) == 3
    assert (default_clusters(10), default_clusters(10_000)) == (1, 10)
