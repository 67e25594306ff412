"""Tables and keep-lists come back as they were written, and say what is wrong with them."""

from pathlib import Path

import pytest

from clipkit.errors import DataError
from data_tools.tables import (
    read_keep,
    read_table,
    shard_names,
    table_path,
    write_keep,
    write_table,
)


def test_names_are_paths_below_the_common_folder() -> None:
    assert shard_names(["/d/a/0.tar", "/d/a/1.tar"]) == ["0.tar", "1.tar"]
    assert shard_names(["/d/a/0.tar", "/d/b/0.tar"]) == ["a/0.tar", "b/0.tar"]
    assert shard_names(["/d/a/0.tar"]) == ["0.tar"]


def test_no_two_shards_share_a_table() -> None:
    names = ["a/b.tar", "a__b.tar", "a/b", "a%2Fb.tar", "a%252Fb.tar", "b.tar", "b"]
    paths = {table_path(Path("t"), name) for name in names}
    assert len(paths) == len(names) and {path.parent for path in paths} == {Path("t")}


def test_a_folder_is_read_in_order_of_names(tmp_path: Path) -> None:
    for name in ("1", "0"):
        write_table(tmp_path / f"{name}.parquet", {"row": [int(name)], "x": [1.5]})
    assert read_table(tmp_path, ["row"]).to_pydict() == {"row": [0, 1]}


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no .parquet"):
        read_table(tmp_path)
    write_table(tmp_path / "0.parquet", {"row": [0]})
    with pytest.raises(DataError, match="height"):
        read_table(tmp_path, ["height"])
    (tmp_path / "1.parquet").write_text("no table")
    with pytest.raises(DataError, match=r"1\.parquet"):
        read_table(tmp_path)


def test_a_keep_list_is_sorted_by_shard_and_row(tmp_path: Path) -> None:
    path = tmp_path / "keep.parquet"
    write_keep(path, ["b", "a", "b"], [7, 1, 3], ["k7", "k1", "k3"], "test")
    kept = read_keep(path)
    assert list(kept) == ["a", "b"]
    assert kept["b"][0].tolist() == [3, 7] and kept["b"][1] == ["k3", "k7"]
    write_keep(path, [], [], [], "test")
    assert read_keep(path) == {}


def test_a_sample_named_twice_is_an_error(tmp_path: Path) -> None:
    write_keep(tmp_path / "k.parquet", ["a", "a"], [1, 1], ["x", "x"], "test")
    with pytest.raises(DataError, match="twice"):
        read_keep(tmp_path / "k.parquet")
