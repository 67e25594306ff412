"""Members are judged by their names, and by names alone."""

from __future__ import annotations

from pathlib import Path

from clipkit.data.tar_index import build_index
from clipkit.data.tar_scan import scan_tar
from data_tools.validate.names import member_notes
from tests.fixtures_shards import write_tar


def notes_of(path: Path) -> list[tuple[int, str, str, str]]:
    notes = member_notes(scan_tar(str(path)), build_index(str(path)), ("jpg", "txt", "json"))
    return [tuple(note) for note in notes]


def test_every_kind_of_name(tmp_path: Path) -> None:
    members = ["0.jpg", "0.txt", "0.pyd", "1.jpg", "1.txt", "1.jpg", "1.bbox.json", "2.bbox.json"]
    members += [
        "2.JPG",
        "2.state.pth",
        "../3.jpg",
        "/4.txt",
        ".DS_Store",
        "folder/._5.jpg",
        "README",
    ]
    path = write_tar(tmp_path / "a.tar", [(name, b"x") for name in members])
    assert notes_of(path) == [
        (0, "0", "dangerous_member", "0.pyd"),
        (3, "2", "dangerous_member", "2.state.pth"),
        (4, "../3", "unsafe_name", "../3.jpg"),
        (5, "/4", "unsafe_name", "/4.txt"),
        (-1, "", "stray_member", ".DS_Store"),
        (-1, "", "stray_member", "folder/._5.jpg"),
        (-1, "", "stray_member", "README"),
        (2, "1", "unknown_member", "2 x .bbox.json"),
    ]


def test_members_beside_a_damaged_header_are_told(tmp_path: Path) -> None:
    names = ["0.jpg", "0.txt", "1.jpg", "1.txt", "2.jpg", "2.txt"]
    path = write_tar(tmp_path / "a.tar", [(name, b"x" * 100) for name in names])
    data = bytearray(path.read_bytes())
    data[3 * 1024 + 20] ^= 0xFF  # header of 1.txt
    path.write_bytes(data)
    assert notes_of(path) == [(-1, "", "torn_sample", "1.jpg")]


def test_an_empty_shard_has_no_notes(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"")
    assert notes_of(path) == []
