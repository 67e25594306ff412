"""A shard is the same bytes for the same samples, readable by webdataset, whole or absent."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import webdataset

from clipkit.data.shard_reader import iter_samples
from clipkit.data.shard_writer import write_shard
from clipkit.data.tar_index import build_index
from clipkit.errors import DataError

_SAMPLES = [("a/0", {"txt": b"one", "jpg": b"1"}), ("a/1", {"jpg": b"22", "txt": b"two"})]


def test_equal_samples_give_equal_bytes(tmp_path: Path) -> None:
    first = write_shard(tmp_path / "1.tar", _SAMPLES)
    second = write_shard(tmp_path / "sub" / "2.tar", reversed(list(reversed(_SAMPLES))))
    assert first == second
    assert (tmp_path / "1.tar").read_bytes() == (tmp_path / "sub" / "2.tar").read_bytes()
    assert (first.samples, first.bytes) == (2, (tmp_path / "1.tar").stat().st_size)


def test_webdataset_and_the_index_read_the_same(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    write_shard(path, _SAMPLES)
    found = [
        (s["__key__"], s["jpg"], s["txt"])
        for s in webdataset.WebDataset(str(path), shardshuffle=False)
    ]
    ours = [
        (s.key, s.members["jpg"], s.members["txt"]) for s in iter_samples(build_index(str(path)))
    ]
    assert found == ours == [("a/0", b"1", b"one"), ("a/1", b"22", b"two")]


def test_a_failure_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    before = write_shard(path, _SAMPLES)

    def broken() -> Iterator[tuple[str, dict[str, bytes]]]:
        yield _SAMPLES[0]
        raise ValueError

    with pytest.raises(ValueError):
        write_shard(path, broken())
    assert path.stat().st_size == before.bytes
    assert [p.name for p in tmp_path.iterdir()] == ["x.tar"]


def test_neighbours_with_one_key_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'k'"):
        write_shard(tmp_path / "x.tar", [("k", {"txt": b"a"}), ("k", {"txt": b"b"})])
