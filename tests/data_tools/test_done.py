"""A marker counts only for the same code, parameters and shard, and whole outputs."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import pytest

from clipkit.errors import DataError
from data_tools import done
from data_tools.done import (
    code_hash,
    fingerprint,
    marker_path,
    read_done,
    shard_identity,
    write_done,
)


def test_a_result_comes_back_as_it_was_returned(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(b"12345")
    marker = marker_path(tmp_path, "f", "/x/a.tar")
    given = write_done(marker, "print", tmp_path, {"n": 1, "x": (1, 2), "outputs": ["t"]})
    assert given == {"n": 1, "x": [1, 2], "outputs": ["t"]}
    assert read_done(marker, "print", tmp_path) == given
    assert read_done(marker, "other", tmp_path) is None


def test_a_lost_or_cut_output_is_missed(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(b"12345")
    marker = tmp_path / ".done" / "m.json"
    write_done(marker, "print", tmp_path, {"outputs": "t"})
    assert read_done(marker, "print", tmp_path) == {"outputs": "t"}
    (tmp_path / "t").write_bytes(b"1234")
    assert read_done(marker, "print", tmp_path) is None
    (tmp_path / "t").unlink()
    assert read_done(marker, "print", tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"fingerprint": "print"}', "\udcff"])
def test_a_damaged_marker_is_no_marker(tmp_path: Path, text: str) -> None:
    marker = tmp_path / "m.json"
    marker.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert read_done(marker, "print", tmp_path) is None


def test_an_output_of_a_wrong_kind_is_no_mark(tmp_path: Path) -> None:
    marker = tmp_path / "m.json"
    for outputs in ([1], {"a": "b"}, 4):
        note = {"fingerprint": "print", "outputs": outputs, "result": {}}
        marker.write_text(json.dumps(note))
        assert read_done(marker, "print", tmp_path) is None


def test_shards_of_one_name_have_markers_of_their_own(tmp_path: Path) -> None:
    names = {marker_path(tmp_path, f, shard) for f in "fg" for shard in ("/x/a.tar", "/y/a.tar")}
    assert len(names) == 4 and all(name.name.startswith("a.tar.") for name in names)
    assert marker_path(tmp_path, "f", "a.tar") == marker_path(tmp_path, "f", f"{Path.cwd()}/a.tar")
    assert marker_path(tmp_path, "f", "s3://b/" + "x" * 400 + ".tar").name.endswith(".json")
    assert len(marker_path(tmp_path, "f", "s3://b/" + "x" * 400 + ".tar").name) < 200


def test_a_fingerprint_hangs_on_each_part() -> None:
    parts = [("c", {"a": 1}, ["s", 1, 2]), ("d", {"a": 1}, ["s", 1, 2])]
    parts += [("c", {"a": 2}, ["s", 1, 2]), ("c", {"a": 1}, ["s", 1, 3])]
    assert len({fingerprint(*part) for part in parts}) == 4
    assert fingerprint("c", {"a": 1, "b": 2}, []) == fingerprint("c", {"b": 2, "a": 1}, [])


def test_code_is_the_module_or_the_whole_tool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "sometool"
    package.mkdir()
    for name in ("__init__", "one", "two"):
        (package / f"{name}.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = code_hash("sometool.one")
    assert before == code_hash("sometool.one")
    (package / "two.py").write_text("x = 2\n")
    assert code_hash("sometool.one") != before
    assert code_hash("data_tools.tables") != code_hash("data_tools.done")


def test_code_is_also_what_reads_and_decodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (done.DATA / "decode.py").exists()
    monkeypatch.setattr(done, "DATA", tmp_path)
    seen = [code_hash("data_tools.wds")]
    for text in ("x = 1\n", "x = 2\n"):
        (tmp_path / "decode.py").write_text(text)
        seen.append(code_hash("data_tools.wds"))
    monkeypatch.setattr(done, "__file__", str(tmp_path / "done.py"))
    for text in ("x = 1\n", "x = 2\n"):
        (tmp_path / "tables.py").write_text(text)
        seen.append(code_hash("data_tools.dedup.exact"))
    assert len(set(seen)) == 5


def test_identity_is_path_size_and_time(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"123")
    assert shard_identity(str(path)) == [str(path), 3, path.stat().st_mtime_ns]
    assert shard_identity("/nowhere/b")[1:] == [None, None]


def test_identity_of_a_url_follows_its_content() -> None:
    files = fsspec.filesystem("memory")
    files.pipe("/done/a.tar", b"123")
    first = shard_identity("memory://done/a.tar")
    assert first[:2] == ["memory://done/a.tar", 3]
    files.pipe("/done/a.tar", b"456")
    assert shard_identity("memory://done/a.tar") != first
    assert shard_identity("memory://done/b.tar")[1:] == [None, None]
    assert shard_identity("nosuch://done/b.tar")[1:] == [None, None]


def test_a_marker_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / ".done").write_text("a file")
    with pytest.raises(DataError, match="cannot be written"):
        write_done(marker_path(tmp_path, "f", "a"), "print", tmp_path, {})
