"""A summary is one JSON file and one table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import clipkit
from clipkit.errors import DataError
from data_tools.summary import print_summary, write_summary

FACTS = {
    "samples": 12345,
    "seconds": 1.5,
    "arguments": {"a": 1},
    "counts": {"too_small": 1000, "[red]x": 2},
    "keep": "out/[bold]keep.parquet",
    "failures": [{"shard": "s", "reason": "r"}],
}


def test_the_file_holds_tool_version_and_facts(tmp_path: Path) -> None:
    path = write_summary(tmp_path / "new", "count", FACTS)
    assert path == tmp_path / "new" / "summary.json"
    expected = {"tool": "count", "version": clipkit.__version__, **FACTS}
    assert json.loads(path.read_text()) == expected
    assert [file.name for file in path.parent.iterdir()] == ["summary.json"]


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_summary(tmp_path / "file", "count", {})


def test_the_table_shows_numbers_and_words_unchanged(capsys: pytest.CaptureFixture[str]) -> None:
    print_summary("count", FACTS)
    shown = capsys.readouterr().out
    for text in ("12,345", "too small", "1,000", "[red]x", "[bold]keep.parquet", "failed shards"):
        assert text in shown
    assert "arguments" not in shown


def test_texts_by_name_are_lines_below_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_summary("index", {"problems": {f"s{i}.tar": f"[cut] {i}" for i in range(12)}, "x": {}})
    shown = capsys.readouterr().out.splitlines()
    assert [f"s{i}.tar: [cut] {i}" for i in range(10)] == shown[-11:-1]
    assert shown[-1] == "and 2 more"
