"""Keep-list, duplicates and summary belong together; other results are not overwritten."""

import json
from pathlib import Path

import numpy as np
import pyarrow
import pytest

from clipkit.errors import DataError
from data_tools.dedup.outcome import check_out, write_outcome
from data_tools.tables import read_keep, read_table


def write(out: Path) -> dict:
    samples = pyarrow.table({"shard": list("aab"), "row": [0, 1, 0], "key": list("xyz")})
    of, distance = np.array([-1, -1, 1]), np.array([0, 0, 3])
    return write_outcome(out, "exact", samples, of, distance, {"counts": {"groups": 1}})


def test_all_three_files(tmp_path: Path) -> None:
    facts = write(tmp_path)
    assert facts["counts"] == {"duplicates": 1, "kept": 2, "groups": 1}
    assert read_keep(tmp_path / "keep.parquet")["a"][1] == ["x", "y"]
    assert read_table(tmp_path / "duplicates.parquet").to_pylist() == [
        {"shard": "b", "row": 0, "key": "z", "of_shard": "a", "of_row": 1, "of_key": "y",
         "distance": 3.0}
    ]  # fmt: skip
    assert json.loads((tmp_path / "summary.json").read_text())["tool"] == "dedup exact"


def test_where_results_may_go(tmp_path: Path) -> None:
    check_out(tmp_path / "new", "exact")
    write(tmp_path)
    check_out(tmp_path, "exact")
    with pytest.raises(DataError, match="holds the results of dedup exact"):
        check_out(tmp_path, "text")
    (tmp_path / "thing").touch()
    with pytest.raises(DataError, match="exists: name a new"):
        check_out(tmp_path, "exact")
    with pytest.raises(DataError, match="exists"):
        check_out(tmp_path / "thing", "exact")
