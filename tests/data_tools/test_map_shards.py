"""Every shard is done once, marked, resumed, retried or reported; nothing is lost or left over."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipkit.errors import ConfigError, DataError
from data_tools.map_shards import MapReport, map_shards
from tests.data_tools import shard_functions as functions


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    paths = [tmp_path / "in" / f"{name}.tar" for name in "abcde"]
    paths[0].parent.mkdir()
    for path in paths:
        path.write_bytes(b"tar")
    return [str(path) for path in paths]


def calls(out: Path) -> list[str]:
    """Shards that were worked on since the last look."""
    if not (out / "calls").exists():
        return []
    text = (out / "calls").read_text()
    (out / "calls").unlink()
    return sorted(text.split())


ALL = ["a.tar", "b.tar", "c.tar", "d.tar", "e.tar"]


def test_all_shards_are_done_in_order_and_not_again(tmp_path: Path, shards: list[str]) -> None:
    out = tmp_path / "out"
    report = map_shards(functions.count_calls, shards, out=out, params={}, workers=2)
    assert [result["name"] for result in report.done] == ALL
    assert (report.skipped, report.failures, report.shards) == (0, [], shards)
    assert report.facts()["samples"] == 10 and report.facts()["failures"] == []
    assert calls(out) == ALL
    again = map_shards(functions.count_calls, shards, out=out, params={}, workers=2)
    assert again.results == report.results and again.skipped == 5 and calls(out) == []
    map_shards(functions.count_calls, shards[:1], out=out, params={}, resume=False)
    assert calls(out) == ["a.tar"]
