"""Records become rows: captions, keys and paths, and what is refused."""

import json
from pathlib import Path

import pytest

from clipkit.errors import DataError
from data_tools.build.rows import SCHEMA, Columns, RowList, captions_of, texts_of


def test_columns_are_guessed_or_named(capsys: pytest.CaptureFixture[str]) -> None:
    where = Path("t.csv")
    found = Columns().found_in(["filepath", "title", "x"], where)
    assert (found.image, found.captions) == ("filepath", ("title",))
    assert capsys.readouterr().err == "t.csv: images from 'filepath', captions from 'title'\n"
    found = Columns(captions=("a", "b"), key="x").found_in(["image", "a", "b", "x"], where)
    assert found == Columns("image", ("a", "b"), "x")
    assert capsys.readouterr().err == "t.csv: images from 'image'\n"
    Columns("image", ("a",)).found_in(["image", "a"], where)
    assert capsys.readouterr().err == ""
    for columns, names, message in [
        (Columns(image="imgae"), ["image", "text"], "did you mean 'image'"),
        (Columns(), ["image", "x"], "--caption-columns, one of image, x"),
        (Columns(), ["image", "text", "caption"], "caption and text may each"),
    ]:
        with pytest.raises(DataError, match=message):
            columns.found_in(names, where)


def test_captions_may_be_lists_and_the_rest_is_json() -> None:
    record = {"image": "a.png", "c": [" one ", "", None], "d": "two", "id": 7, "raw": b"x"}
    assert captions_of(record, ("c", "d")) == ["one", "two"]
    texts = texts_of({**record, "f": float("nan"), "g": [1, b"x"]}, Columns("image", ("c", "d")))
    assert texts["txt"] == "one" and texts["cause"] == ""
    assert json.loads(texts["json"]) == {
        "captions": ["one", "two"], "id": 7, "f": None, "g": [1]
    }  # fmt: skip
    alone = texts_of({"image": "a.png", "c": "x", "id": 7}, Columns("image", ("c",), "id"))
    assert alone == {"txt": "x", "json": "", "cause": ""}
    assert texts_of({"c": "  "}, Columns("image", ("c",)))["cause"] == "no_caption"


def test_paths_stay_below_the_root(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(b"123")
    rows = RowList(tmp_path / "a")
    for name in ("x.png", "sub/../x.png", str(tmp_path / "a" / "x.png"), "none.png"):
        rows.add_file(name, txt="t")
    table = rows.table()
    assert table.schema == SCHEMA
    assert table["size"].to_pylist() == [3, 3, 3, 0]
    assert table["key"].to_pylist()[-1] == "000000003"
    for name in ("../b.png", "/etc/passwd", f"{tmp_path}/ab.png", "sub/../../b.png"):
        with pytest.raises(DataError, match="lies outside .*--root"):
            rows.add_file(name)
    with pytest.raises(DataError, match="is a URL"):
        rows.add_file("https://x.org/a.png")


@pytest.mark.parametrize("key", ["a.b", "a/b", "", "é", "x" * 91])
def test_unusable_keys_are_named(tmp_path: Path, key: str) -> None:
    rows = RowList(tmp_path)
    rows.add(key=key)
    with pytest.raises(DataError, match="row 0: key .* A-Z"):
        rows.table()


def test_a_key_given_twice_and_a_name_that_is_no_text(tmp_path: Path) -> None:
    rows = RowList(tmp_path)
    rows.add(key="a")
    rows.add(key="a")
    with pytest.raises(DataError, match="row 1: key 'a' stands there twice"):
        rows.table()
    rows = RowList(tmp_path)
    rows.add_file("a\udcff.png")
    with pytest.raises(DataError, match="no UTF-8"):
        rows.table()
