"""Shards that a file counted, held against those of a run."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from clipkit.data.numbering import Shard, difference, read_shards, shards_of
from clipkit.data.open_source import open_source
from clipkit.data.table_source import TableSource
from clipkit.data.tar_index import load_index
from tests.fixtures_shards import write_shards

OWN = [Shard("0.tar", 5, "x"), Shard("1.tar", 3, "y")]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (OWN, ""),
        ([Shard("0.tar", 5, ""), OWN[1]], ""),  # one side does not know
        ([Shard("0.tar", 4, "x"), OWN[1]], "shard 0 is 0.tar with 5 samples, in the run 0.tar"),
        ([OWN[0], Shard("2.tar", 3, "y")], "shard 1 is 1.tar with 3 samples, in the run 2.tar"),
        ([OWN[0], Shard("1.tar", 3, "z")], "shard 1 is another 1.tar, of as many samples"),
        (OWN[:1], "it counts 2 shards, the run has 1"),
    ],
)
def test_the_first_difference_is_told(given: list[Shard], said: str) -> None:
    assert difference(OWN, given).startswith(said) and bool(difference(OWN, given)) == bool(said)


def test_shards_of_sources_of_any_kind(tmp_path: Path) -> None:
    paths = write_shards(tmp_path / "tars", [2, 3])
    (tmp_path / "a.csv").write_text("filepath,title\n0.png,c\n")
    tars = open_source(paths, "t", TableSource)
    both = open_source([str(tmp_path / "a.csv"), *paths], "b", TableSource)
    found = shards_of([tars, both])
    known = [Shard(os.path.basename(p), n, load_index(p).checksum) for p, n in zip(paths, (2, 3))]
    assert found == [*known, *known, Shard("a.csv", 1, both.part_digest(2))]
    assert len({shard.digest for shard in found}) == 3


def test_shards_out_of_a_file() -> None:
    told = [{"path": "s3://b/0.tar", "rows": 5, "index": "x"}, {"path": "1.tar", "rows": 3}]
    assert read_shards(json.loads(json.dumps(told))) == [OWN[0], Shard("1.tar", 3, "")]
    for wrong in (None, [3], [{"path": "a"}], [{"path": "a", "rows": "many"}]):
        with pytest.raises((ValueError, KeyError, TypeError)):
            read_shards(wrong)
