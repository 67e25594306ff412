"""Shards and lists as one source."""

import numpy as np

from clipkit.data.open_source import JoinedSource, open_source
from clipkit.data.sources import ShardSource
from clipkit.data.table_source import TableSource
from tests.fixtures_shards import noise_bytes, write_shards

HALVES = {"a": [2, 3], "b": [4, 5]}


def write_list(folder, name, first, count):
    folder.mkdir(exist_ok=True)
    lines = ["filepath,title"]
    for i in range(first, first + count):
        (folder / f"{i}.png").write_bytes(noise_bytes(i))
        lines.append(f"{i}.png,caption {i}")
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_one_kind_alone_is_its_own_source(tmp_path):
    shards = write_shards(tmp_path / "tars", [3, 4])
    table = write_list(tmp_path / "files", "a.csv", 0, 2)
    source = open_source(shards, "web", TableSource)
    assert isinstance(source, ShardSource) and source.name == "web"
    assert isinstance(open_source([table], "web", TableSource), TableSource)


def test_both_kinds_are_counted_through(tmp_path):
    shards = write_shards(tmp_path / "tars", [3, 4])
    tables = [write_list(tmp_path / "files", f"{n}.csv", n, 2) for n in (10, 20)]
    source = open_source([tables[0], *shards, tables[1]], "web", TableSource)
    assert source.counts.tolist() == [3, 4, 2, 2] and source.counts.dtype == np.int64
    texts = [
        source.members(part, row, ("txt",), 10**6)["txt"].decode()
        for part, count in enumerate(source.counts)
        for row in range(count)
    ]
    assert texts == [f"caption {i}" for i in (*range(7), 10, 11, 20, 21)]
    assert [source.part_name(p) for p in range(4)] == [*shards, *tables]
    assert source.key(1, 0) == "000003"


def test_parts_behind_the_first_source_are_its_own(tmp_path):
    halves = [ShardSource(write_shards(tmp_path / n, counts)) for n, counts in HALVES.items()]
    joined = JoinedSource(halves, "both")
    assert joined.counts.tolist() == [2, 3, 4, 5]
    assert joined.part_name(3) == halves[1].part_name(1)
    assert joined.key(3, 4) == halves[1].key(1, 4) == "000008"
    assert joined.members(2, 1, ("txt",), 100) == {"txt": b"caption 1"}


def test_the_manifest_depends_on_every_part(tmp_path):
    shards = write_shards(tmp_path / "tars", [3, 4])
    tables = [write_list(tmp_path / "files", f"{n}.csv", n, 2) for n in (10, 20)]
    digests = {
        open_source(paths, "web", TableSource).manifest
        for paths in ([*shards, *tables], [*shards, *tables[::-1]], [shards[0], *tables])
    }
    assert len(digests) == 3
    assert open_source([*shards, *tables], "x", TableSource).manifest in digests  # not the name


class Heard:
    """A source of one kind of part that remembers what comes next."""

    counts, manifest, notes, lost, name = np.array([1, 1]), "", ["n"], [("a", "b", 1)], ""

    def __init__(self, path):
        self.told = []

    def prefetch(self, parts):
        self.told.append(parts)


def test_each_hears_of_its_own_parts():
    source = open_source(["a.csv", "b.csv"], "x", Heard)
    source.prefetch([3, 0, 2])
    assert [s.told for s in source.sources] == [[[0]], [[1, 0]]]
    assert source.notes == ["n", "n"] and source.lost == [("a", "b", 1)] * 2
