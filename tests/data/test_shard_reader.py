"""Samples of a shard in order, by an allow-list and a size limit."""

from pathlib import Path

import pytest

from clipkit.data.shard_reader import iter_samples
from clipkit.data.shard_writer import write_shard
from clipkit.data.tar_index import build_index
from clipkit.errors import DataError


def _shard(folder: Path) -> str:
    members = [
        (f"s{i}", {"txt": b"t%d" % i, "pyd": b"code", "jpg": b"j" * (i + 1)}) for i in range(5)
    ]
    write_shard(folder / "x.tar", members)
    return str(folder / "x.tar")


def test_allowed_members_in_order(tmp_path: Path) -> None:
    found = list(iter_samples(build_index(_shard(tmp_path)), ("jpg", "txt"), max_bytes=3))
    assert [s.row for s in found] == list(range(5))
    assert [s.key for s in found] == [f"s{i}" for i in range(5)]
    assert found[1].members == {"jpg": b"jj", "txt": b"t1"}
    assert found[4].members == {"txt": b"t4"} and found[4].too_large == ("jpg",)


def test_stops_where_told(tmp_path: Path) -> None:
    assert len(list(iter_samples(build_index(_shard(tmp_path)), stop=2))) == 2


def test_a_shard_cut_after_indexing_is_named(tmp_path: Path) -> None:
    path = _shard(tmp_path)
    index = build_index(path)
    with open(path, "r+b") as file:
        file.truncate(int(index.offsets[-1]))
    with pytest.raises(DataError, match=r"x\.tar"):
        list(iter_samples(index))
