"""Tables of image files as a source: what is read, what is refused, and how it is told."""

import json
import os
import pickle

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from clipkit.data import table_source
from clipkit.data.bad_samples import BadSample
from clipkit.data.table_source import TableSource
from clipkit.errors import DataError
from tests.fixtures_shards import noise_bytes

WANTED = ("png", "jpg", "txt", "json")
ROWS = [("a.png", "a cat, sat"), ("sub/b.PNG", 'two "quoted"\nlines'), ("c", "näm")]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    for i, (name, _) in enumerate(ROWS):
        (tmp_path / name).write_bytes(noise_bytes(i))
    return tmp_path


def write(folder, suffix, rows=ROWS, header=("filepath", "title")):
    path = folder / f"list{suffix}"
    if suffix == ".parquet":
        columns = {h: [row[i] for row in rows] for i, h in enumerate(header)}
        parquet.write_table(pyarrow.table(columns), path)
    else:
        between = "\t" if suffix == ".tsv" else ","

        def quoted(text):
            return '"' + str(text).replace('"', '""') + '"'

        lines = [between.join(map(quoted, row)) for row in (header, *rows)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def read(source, row=0, wanted=WANTED, limit=10**6):
    return source.members(0, row, wanted, limit)


def cause(source, row=0, **options):
    with pytest.raises(BadSample) as caught:
        read(source, row, **options)
    return caught.value.cause


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_rows_become_members(folder, suffix):
    source = TableSource(write(folder, suffix))
    assert source.counts.tolist() == [3] and source.counts.dtype == np.int64
    for row, (name, title) in enumerate(ROWS):
        members = read(source, row)
        assert set(members) == {"png" if row < 2 else "jpg", "txt", "json"}
        assert members["png" if row < 2 else "jpg"] == noise_bytes(row)
        assert members["txt"] == title.encode()
        assert json.loads(members["json"]) == {"filepath": name, "title": title}
        assert source.key(0, row) == name
    assert source.part_name(0) == source.name and not source.lost and not source.notes
    source.prefetch([0])


def test_only_what_is_wanted(folder):
    source = TableSource(write(folder, ".csv"))
    assert set(read(source, wanted=("txt",))) == {"txt"}
    assert set(read(source, wanted=("jpg", "txt"))) == {"txt"}  # a png is no wanted image


def test_csv_columns_stay_as_written(folder):
    rows = [("a.png", "007", "", "NA")]
    source = TableSource(write(folder, ".csv", rows, ("filepath", "title", "x", "y")))
    assert read(source)["txt"] == b"007"
    assert json.loads(read(source)["json"])["x"] == "" and b'"NA"' in read(source)["json"]


def test_parquet_types(folder):
    columns = {
        "filepath": pyarrow.array(["a.png", None, "a.png"]).dictionary_encode(),
        "title": pyarrow.array(["one", "two", None], pyarrow.large_string()),
        "score": [0.5, 1.5, 2.5],
        "tags": [["x"], [], None],
        "raw": [b"\xff", b"", None],
        "image": [{"bytes": b"\xff", "path": "a"}] * 3,
    }
    path = folder / "list.parquet"
    parquet.write_table(pyarrow.table(columns), path, row_group_size=1)
    source = TableSource(str(path))
    assert json.loads(read(source)["json"]) == {
        "filepath": "a.png",
        "title": "one",
        "score": 0.5,
        "tags": ["x"],
    }
    assert cause(source, 1) == "no_image" and source.key(0, 1) == ""
    assert "txt" not in read(source, 2)


def test_other_columns_and_separator(folder):
    path = folder / "list.txt.csv"
    path.write_text("img;en;de\na.png;cat;Katze\n")
    source = TableSource(str(path), "img", ("de", "en"), separator=";")
    assert read(source)["txt"] == b"Katze"


def test_tabs_in_a_csv_are_found(folder):
    path = folder / "open_clip.csv"
    path.write_text('filepath\t"title"\ta,b\na.png\tcat, sat\t1\n')
    source = TableSource(str(path))
    assert read(source)["txt"] == b"cat, sat"
    assert json.loads(read(source)["json"])["a,b"] == "1"


def test_files_that_tell_no_size_are_read_within_the_limit(folder):
    source = TableSource(write(folder, ".csv", [("/proc/self/status", "t")]))
    assert read(source)["jpg"].startswith(b"Name:")
    assert cause(source, limit=10) == "too_many_bytes"


class TestPlaces:
    """Image paths stay within the root."""

    def source(self, folder, *names, root=None):
        return TableSource(
            write(folder / "sub", ".csv", [(name, "t") for name in names]), root=root
        )

    def test_relative_to_the_table_or_the_root(self, folder):
        assert read(self.source(folder, "b.PNG"))["png"] == noise_bytes(1)
        assert read(self.source(folder, "a.png", root=str(folder)))["png"] == noise_bytes(0)

    def test_works_from_any_folder(self, folder, monkeypatch):
        monkeypatch.chdir(folder)
        write(folder, ".csv")
        source = TableSource("list.csv", root=".")
        monkeypatch.chdir("/")
        assert read(source)["png"] == noise_bytes(0)

    @pytest.mark.parametrize("name", ["../a.png", "x/../../a.png", "a\0.png"])
    @pytest.mark.parametrize("rooted", [True, False])
    def test_leading_out(self, folder, name, rooted):
        rows = [(name, "t")]
        path = write(folder / "sub", ".parquet", rows)
        source = TableSource(path, root=str(folder / "sub") if rooted else None)
        assert cause(source) == "outside_root"

    def test_absolute(self, folder):
        name = f"{folder}/a.png"
        assert read(self.source(folder, name))["png"] == noise_bytes(0)
        assert read(self.source(folder, name, root=str(folder)))["png"] == noise_bytes(0)
        assert cause(self.source(folder, name, root=str(folder / "sub"))) == "outside_root"
        beside = f"{folder}/sub2/a.png"  # shares the root's letters, not its path
        assert cause(self.source(folder, beside, root=f"{folder}/sub")) == "outside_root"

    def test_dots_that_stay_inside(self, folder):
        assert read(self.source(folder, "sub/../a.png", root=str(folder)))


class TestFaults:
    """One bad row is one bad sample."""

    def test_files(self, folder):
        os.mkfifo(folder / "pipe.png")
        (folder / "dir.png").mkdir()
        names = ["none.png", "pipe.png", "dir.png", "a.png", "", "https://host/a.png", "x" * 300]
        source = TableSource(write(folder, ".csv", [(name, "t") for name in names]))
        limits = [10**6] * 3 + [20] + [10**6] * 3
        found = [cause(source, i, limit=limits[i], wanted=("png", "jpg")) for i in range(7)]
        assert found == [
            "missing_file",
            "unreadable_file",
            "unreadable_file",
            "too_many_bytes",
            "no_image",
            "missing_file",
            "unreadable_file",
        ]

    @pytest.mark.parametrize(
        ("name", "data", "said"),
        [
            ("a.csv", b"filepath,caption\na.png,x\n", "has no column 'title'"),
            ("a.csv", b"filepath,titel\na.png,x\n", "did you mean 'titel'"),
            ("a.csv", b"filepath\tcaption\na.png\tx\n", "data.table_separator, it may be '\\t'"),
            ("a.tsv", b"filepath,title\na.png,x\n", "data.table_separator, it may be ','"),
            ("a.csv", b"filepath;title\na.png;x\n", "data.table_separator, it may be ';'"),
            ("a.csv", b"filepath,title\n", "no rows"),
            ("a.csv", b"", "cannot be read as a table"),
            ("a.csv", "filepath,title\na.png,näm\n".encode("latin-1"), "not UTF-8"),
            ("a.csv", "filepath,title\na.png,x\n".encode("utf-16"), "a.csv"),
            ("a.csv", b"filepath,title\na.png,x,y\n", "cannot be read as a table"),
            ("a.csv", b"filepath,title,title\na.png,x,y\n", "two columns are named 'title'"),
            ("a.parquet", b"PAR1 nonsense", "cannot be read as a table"),
            ("none.csv", None, "does not exist"),
            ("none.parquet", None, "does not exist"),
        ],
    )
    def test_tables(self, tmp_path, name, data, said):
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError) as caught:
            TableSource(str(tmp_path / name))
        assert said in str(caught.value) and name in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
    def test_a_pipe_as_a_table(self, tmp_path, suffix):
        os.mkfifo(tmp_path / f"a{suffix}")
        with pytest.raises(DataError, match="cannot be read as a table: it is no regular file"):
            TableSource(str(tmp_path / f"a{suffix}"))

    @pytest.mark.parametrize("column", ["image", "jpg", "filepath"])
    @pytest.mark.parametrize("nested", [True, False])
    def test_pictures_within_the_table(self, tmp_path, column, nested):
        pictures = [{"bytes": b"\xff", "path": "a"}] if nested else [b"\xff"]
        table = pyarrow.table({column: pictures, "title": ["x"]})
        parquet.write_table(table, tmp_path / "a.parquet")
        with pytest.raises(DataError, match=f"'{column}' holds .*; pack it with clipkit-data"):
            TableSource(str(tmp_path / "a.parquet"))

    def test_a_byte_order_mark_is_no_part_of_a_name(self, folder):
        path = folder / "bom.csv"
        path.write_bytes("\ufefffilepath,title\na.png,x\n".encode())
        assert read(TableSource(str(path)))["txt"] == b"x"

    def test_a_column_of_something_else(self, tmp_path):
        table = pyarrow.table({"filepath": [["a"]], "title": ["x"]})
        parquet.write_table(table, tmp_path / "a.parquet")
        with pytest.raises(DataError, match="'filepath' holds list"):
            TableSource(str(tmp_path / "a.parquet"))


class TestManifest:
    """Identity: image and caption columns, in order, however they are stored."""

    def test_formats_and_chunks_do_not_count(self, folder):
        table = pyarrow.table({"filepath": [r[0] for r in ROWS], "title": [r[1] for r in ROWS]})
        parquet.write_table(table, folder / "chunks.parquet", row_group_size=1)
        names = [write(folder, s) for s in (".csv", ".tsv", ".parquet")]
        names.append(str(folder / "chunks.parquet"))
        assert len({TableSource(name).manifest for name in names}) == 1

    def test_content_order_and_null_do(self, folder):
        tables = [
            ROWS,
            ROWS[::-1],
            ROWS[:2],
            [("a.pnga", " cat, sat"), *ROWS[1:]],
            [("a.png", None), *ROWS[1:]],
            [("a.png", ""), *ROWS[1:]],
        ]
        found = {TableSource(write(folder, ".parquet", rows)).manifest for rows in tables}
        assert len(found) == len(tables)

    def test_other_columns_do_not(self, folder):
        plain = TableSource(write(folder, ".csv")).manifest
        more = [(*row, "x") for row in ROWS]
        path = write(folder, ".csv", more, ("filepath", "title", "z"))
        assert TableSource(path).manifest == plain
        assert TableSource(path, caption_columns=("title", "z")).manifest != plain


def test_pickled_it_reads_the_same(folder):
    source = TableSource(write(folder, ".csv"))
    again = pickle.loads(pickle.dumps(source))
    assert read(again, 1) == read(source, 1) and again.manifest == source.manifest


def test_many_rows_are_held_in_arrow(tmp_path):
    count = 200_000
    path = tmp_path / "many.csv"
    path.write_text("filepath,title\n" + "".join(f"{i}.png,caption {i}\n" for i in range(count)))
    source = TableSource(str(path))
    assert source.key(0, count - 1) == f"{count - 1}.png"
    assert read(source, count - 1, wanted=("txt",))["txt"] == f"caption {count - 1}".encode()
    assert len(pickle.dumps(source)) < 200 * count


def test_a_table_that_unfolds_to_more_than_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(table_source, "_ALWAYS", 1 << 20)
    codes = pyarrow.array([0] * 20_000, pyarrow.int32())
    texts = pyarrow.DictionaryArray.from_arrays(codes, pyarrow.array(["x" * 2000]))
    parquet.write_table(pyarrow.table({"filepath": texts, "title": texts}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="unfolds to 1,000 times its size"):
        TableSource(str(tmp_path / "t.parquet"))


def test_columns_of_categories_are_text(tmp_path):
    texts = pyarrow.array(["a.png", "b.png", "a.png"]).dictionary_encode()
    parquet.write_table(pyarrow.table({"filepath": texts, "title": texts}), tmp_path / "t.parquet")
    source = TableSource(str(tmp_path / "t.parquet"))
    assert [source.key(0, row) for row in range(3)] == ["a.png", "b.png", "a.png"]
