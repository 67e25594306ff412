"""Folders: captions beside images, or class folders; nothing is left out unseen."""

import os
from pathlib import Path

import pytest

from clipkit.errors import DataError
from data_tools.build.folder import folder_rows


def fill(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text.encode("latin-1"))
    return root


def found(root: Path, **options: object) -> list[tuple[str, str, str, str]]:
    rows = folder_rows(root, **options).to_pylist()
    assert [row["key"] for row in rows] == [f"{i:09d}" for i in range(len(rows))]
    names = [Path(row["image"]).relative_to(root).as_posix() for row in rows]
    return [(n, r["txt"], r["json"], r["cause"]) for n, r in zip(names, rows)]


def test_captions_beside_images(tmp_path: Path) -> None:
    fill(
        tmp_path,
        {
            "b.jpg": "x", "b.txt": "a b", "a/c.PNG": "x", "a/c.json": '{"caption": " a c "}',
            "d.webp": "x", "d.txt": "d", "d.json": '{"k": 1}', "e.gif": "x", "f.jpg": "x",
            "f.txt": "\xff", "g.jpg": "x", "g.json": "{", "h.jpg": "x", "h.txt": " \n",
            ".hidden/i.jpg": "x", ".j.jpg": "x", "notes.md": "x",
        },
    )  # fmt: skip
    assert found(tmp_path) == [
        ("a/c.PNG", "a c", '{"caption": " a c "}', ""),
        ("b.jpg", "a b", "", ""),
        ("d.webp", "d", '{"k": 1}', ""),
        ("e.gif", "", "", "no_caption"),
        ("f.jpg", "", "", "txt_not_utf8"),
        ("g.jpg", "", "{", "bad_json"),
        ("h.jpg", " \n", "", "no_caption"),
    ]
    assert found(tmp_path, captions=("k",))[0][3] == "no_caption"


def test_files_that_are_no_texts_are_not_opened(tmp_path: Path) -> None:
    fill(tmp_path, {f"{name}.jpg": "x" for name in "abcdef"} | {"f.txt": "fine"})
    os.mkfifo(tmp_path / "a.txt")
    (tmp_path / "b.json").symlink_to("/dev/zero")
    for name, size in (("c.txt", 6_000_000_000), ("d.json", 6_000_000_000)):
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, size)
    (tmp_path / "e.txt").mkdir()
    causes = [cause for *_, cause in found(tmp_path)]
    assert causes == [
        "txt_unreadable", "json_unreadable", "txt_too_long", "json_too_long", "no_caption", ""
    ]  # fmt: skip


def test_class_folders(tmp_path: Path) -> None:
    fill(tmp_path, {"sea_lion/x/1.jpg": "x", "cat/2.png": "x", "3.png": "x"})
    assert found(tmp_path, template="one {c}!") == [
        ("3.png", "", "", "no_caption"),
        ("cat/2.png", "one cat!", "", ""),
        ("sea_lion/x/1.jpg", "one sea lion!", "", ""),
    ]


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none: no such folder"):
        folder_rows(tmp_path / "none")
    with pytest.raises(DataError, match="holds no images"):
        folder_rows(tmp_path)
    fill(tmp_path, {"a.jpg": "x"})
    with pytest.raises(DataError, match="no image has a caption; put"):
        folder_rows(tmp_path)
    with pytest.raises(DataError, match="has no {c}"):
        folder_rows(tmp_path, template="a photo")
