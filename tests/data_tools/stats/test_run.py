"""A run writes tables, sums, page and summary; run again it reads only what changed."""

import json
import os
from pathlib import Path

import pytest

from clipkit.errors import DataError
from data_tools.stats.run import command_line, write_stats
from data_tools.tables import read_table
from tests.data_tools.stats.shards import write_zoo
from tests.fixtures_shards import write_shards

OPTIONS = {"progress": False, "workers": 1}


def test_a_run_and_the_next_one(tmp_path: Path) -> None:
    paths, out = write_zoo(tmp_path / "d"), tmp_path / "out"
    facts = write_stats(paths, out, command="again", **OPTIONS)
    assert facts["shards"] == 3 and facts["errors"]["no_image"] == 1
    assert [d["shard"] for d in facts["damaged_shards"]] == ["1.tar", "2.tar"]
    assert json.loads((out / "summary.json").read_text())["counts"] == facts["counts"]
    html = (out / "stats.html").read_text()
    assert "2 shards are damaged" in html and "again" in html
    table = read_table(out / "tables")
    assert len(table) == facts["samples"] and set(table["shard"].to_pylist()) == {"0.tar", "1.tar"}
    before = {name: (out / name).read_bytes() for name in ("stats.html", "stats.parquet")}
    times = {p: p.stat().st_mtime_ns for p in (out / "tables").iterdir()}
    again = write_stats(paths, out, command="again", **OPTIONS)
    assert again["done_before"] == 3
    assert {name: (out / name).read_bytes() for name in before} == before
    assert {p: p.stat().st_mtime_ns for p in (out / "tables").iterdir()} == times
    # fewer shards: tables of the others do not count
    assert write_stats(paths[:1], tmp_path / "out", **OPTIONS)["samples"] == 9


def test_shards_that_cannot_be_read_are_said_last(tmp_path: Path, monkeypatch) -> None:
    good = write_shards(tmp_path / "d", [3])
    absent = str(tmp_path / "d" / "absent.tar")
    with pytest.raises(DataError, match="1 of 2 shards failed.*absent"):
        write_stats([*good, absent], tmp_path / "out", retries=0, **OPTIONS)
    assert "1 shard could not be read" in (tmp_path / "out" / "stats.html").read_text()
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["samples"] == 3
    with pytest.raises(DataError, match="1 of 1 shards failed"):
        write_stats([absent], tmp_path / "none", retries=0, **OPTIONS)
    assert not os.path.exists(tmp_path / "none" / "stats.html")


def test_dry_run_and_limit(tmp_path: Path, capsys) -> None:
    paths = write_shards(tmp_path / "d", [3, 2])
    assert write_stats(paths, tmp_path / "out", dry_run=True, **OPTIONS) == {}
    assert not (tmp_path / "out").exists() and "2 shards to do" in capsys.readouterr().out
    assert write_stats(paths, tmp_path / "out", limit=1, **OPTIONS)["samples"] == 3


def test_the_command_is_quoted() -> None:
    line = command_line(["a b/{0..3}.tar"], Path("o"), True)
    assert line == "clipkit-data stats 'a b/{0..3}.tar' o --decode"
