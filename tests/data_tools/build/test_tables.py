"""The same rows from CSV, TSV, JSON lines and Parquet; damage is told by line or file."""

import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from clipkit.errors import DataError
from data_tools.build.rows import Columns
from data_tools.build.tables import csv_rows, jsonl_rows, parquet_rows

RECORDS = [
    {"image": "a.png", "caption": 'x, "y"\nz', "n": "007"},
    {"image": "b/c.png", "caption": "NA", "n": ""},
    {"image": "d.png", "caption": "", "n": "1"},
    {"image": "", "caption": "no picture", "n": "1"},
]
TEXTS = ['x, "y"\nz', "NA", "", "no picture"]
CAUSES = ["", "", "no_caption", "no_image"]


def quoted(value: str) -> str:
    return '"' + value.replace('"', '""') + '"'


def check(rows: pyarrow.Table, root: Path) -> None:
    rows = rows.to_pylist()
    assert [r["txt"] for r in rows] == TEXTS and [r["cause"] for r in rows] == CAUSES
    assert [r["image"] for r in rows[:2]] == [str(root / "a.png"), str(root / "b/c.png")]
    assert json.loads(rows[0]["json"]) == {"n": "007"}
    assert all(r["row"] == -1 for r in rows)


@pytest.mark.parametrize("separator", [",", "\t", ";"])
def test_text_tables(tmp_path: Path, separator: str) -> None:
    lines = [list(RECORDS[0]), *(list(r.values()) for r in RECORDS)]
    text = "\r\n".join(separator.join(map(quoted, line)) for line in lines)
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    check(csv_rows(tmp_path / "t.csv", Columns(), tmp_path, separator), tmp_path)


def test_json_lines(tmp_path: Path) -> None:
    lines = [json.dumps(record) for record in RECORDS]
    (tmp_path / "t.jsonl").write_text("\n".join([*lines, "", '{"image": "a.png"', "[]"]))
    rows = jsonl_rows(tmp_path / "t.jsonl", Columns(), tmp_path)
    check(rows.slice(0, 4), tmp_path)
    assert rows["cause"].to_pylist()[4:] == ["bad_json", "bad_json"]


def test_parquet_of_paths_and_of_bytes(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(RECORDS), tmp_path / "t.parquet")
    check(parquet_rows(tmp_path / "t.parquet", Columns(), tmp_path), tmp_path)
    folder = tmp_path / "hf" / "data"
    folder.mkdir(parents=True)
    images = [{"bytes": b"123", "path": "z"}, {"bytes": None, "path": "b.png"}, None]
    table = pyarrow.table(
        {"image": images, "captions": [["u", "v"], ["w"], ["x"]], "id": ["k0", "k1", "k2"]}
    )
    parquet.write_table(table, folder / "1.parquet")
    parquet.write_table(table.set_column(2, "id", [["l0", "l1", "l2"]]), folder / "2.parquet")
    rows = parquet_rows(tmp_path / "hf", Columns(key="id"), tmp_path).to_pylist()
    assert [r["key"] for r in rows] == ["k0", "k1", "k2", "l0", "l1", "l2"]
    assert [(r["row"], r["size"], r["cause"]) for r in rows[:3]] == [
        (0, 3, ""), (-1, 0, ""), (-1, 0, "no_image")
    ]  # fmt: skip
    assert rows[0]["image"] == str(folder / "1.parquet") and rows[0]["column"] == "image"
    assert rows[1]["image"] == str(tmp_path / "b.png")
    assert json.loads(rows[0]["json"]) == {"captions": ["u", "v"]} and rows[1]["json"] == ""
    plain = pyarrow.table({"image": [b"12"], "text": ["t"]})
    parquet.write_table(plain, tmp_path / "plain.parquet")
    assert parquet_rows(tmp_path / "plain.parquet", Columns(), tmp_path)["size"][0].as_py() == 2


def test_damage_is_told(tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.write_bytes(b"image,text\na.png,\xff\n")
    with pytest.raises(DataError, match="bad: cannot be read"):
        csv_rows(bad, Columns(), tmp_path, ",")
    bad.write_bytes(b"image,text\na.png,x,y\n")
    with pytest.raises(DataError, match="Expected 2 columns, got 3"):
        csv_rows(bad, Columns(), tmp_path, ",")
    bad.write_bytes(b"image\ttext\na.png\tx\n")
    with pytest.raises(DataError, match=r"not split by ','; give --separator '\\t'"):
        csv_rows(bad, Columns(), tmp_path, ",")
    assert len(csv_rows(bad, Columns(), tmp_path, r"\t")) == 1
    with pytest.raises(DataError, match="--separator '::': give one character"):
        csv_rows(bad, Columns(), tmp_path, "::")
    with pytest.raises(DataError, match="bad: cannot be read as a table"):
        parquet_rows(bad, Columns(), tmp_path)
    with pytest.raises(DataError, match="holds no .parquet"):
        parquet_rows(tmp_path, Columns(), tmp_path)
    with pytest.raises(DataError, match="none: cannot be read"):
        jsonl_rows(tmp_path / "none", Columns(), tmp_path)
