"""The first of equal values stays; null equals nothing."""

import numpy as np
import pyarrow

from data_tools.dedup.exact import first_of


def test_first_of() -> None:
    chunks = [["b", "a", None], ["a", "b", None, "c"], [], ["c"]]
    values = pyarrow.chunked_array([pyarrow.array(c, pyarrow.string()) for c in chunks])
    assert first_of(values).tolist() == [-1, -1, -1, 1, 0, -1, -1, 6]
    assert first_of(values.slice(0, 0)).tolist() == []


def test_against_a_walk() -> None:
    values = np.random.default_rng(0).integers(0, 50, 300).astype(str).tolist()
    seen: dict[str, int] = {}
    expected = [-1 if seen.setdefault(v, i) == i else seen[v] for i, v in enumerate(values)]
    assert first_of(pyarrow.chunked_array([values])).tolist() == expected
