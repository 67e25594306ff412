"""Draws are a published hash of their values, uniform, and apart for each purpose."""

import hashlib

import duckdb
import numpy as np
import pytest

from data_tools.draws import draw, share


def values(seed: int, purpose: str, names: list[str]) -> np.ndarray:
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE names AS SELECT unnest(?) AS name", [names])
        found = connection.execute(f"SELECT {draw(seed, purpose, 'name')} FROM names ORDER BY name")
        return np.array([value for (value,) in found.fetchall()])


def test_the_hash_is_the_low_half_of_md5() -> None:
    digest = hashlib.md5(b"7\x1ftie\x1fcat").digest()
    expected = (int.from_bytes(digest[8:], "little") >> 11) / 2**53
    assert values(7, "tie", ["cat"]).tolist() == [expected]


def test_draws_are_uniform_and_independent() -> None:
    names = [f"k{i:05d}" for i in range(20_000)]
    one, other, third = values(0, "a", names), values(1, "a", names), values(0, "b", names)
    assert abs(one.mean() - 0.5) < 0.01 and abs((one < 0.1).mean() - 0.1) < 0.01
    assert abs(np.corrcoef([one, other, third]) - np.eye(3)).max() < 0.03


def test_share_rounds_halves_up() -> None:
    assert [share(0.3, 10), share(0.5, 5), share(1.0, 7), share(0.01, 10)] == [3, 3, 7, 0]
    assert share(0.15, 1_000_000_000) == pytest.approx(150_000_000, abs=1)
