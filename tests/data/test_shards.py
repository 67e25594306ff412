"""Patterns -> paths; whatever is missing is named."""

import fsspec
import pytest

from clipkit.data import shards
from clipkit.data.shards import (
    check_deal,
    expand_braces,
    expand_shards,
    is_pipe,
    is_table,
    is_url,
    resolve_shards,
)
from clipkit.errors import ClipkitError, DataError


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{08..10}.tar", ["a-08.tar", "a-09.tar", "a-10.tar"]),
        ("{x,y}-{0..1}", ["x-0", "x-1", "y-0", "y-1"]),
        ("s3://b/{000..002}.tar", ["s3://b/000.tar", "s3://b/001.tar", "s3://b/002.tar"]),
        ("a{}b", ["ab"]),
        ("{3..2}", []),
    ],
)
def test_braces(pattern, expected):
    assert expand_braces(pattern) == expected


@pytest.mark.parametrize(
    "pattern",
    ["{0..999999999999}.tar", "{0..9999}" * 4, "{0..1}" * 60, "{0..999999999999}{0..9999999999}"],
)
def test_hostile_braces_end_in_an_error(pattern, monkeypatch):
    monkeypatch.setattr(shards, "_MAX_SHARDS", 1000)
    with pytest.raises(DataError, match="more than 1,000 names"):
        expand_shards([pattern])


@pytest.fixture
def folder(tmp_path):
    for name in ("a-1.tar", "a-0.tar", "b.tar"):
        (tmp_path / name).touch()
    return tmp_path


def names(paths):
    return [p.rpartition("/")[2] for p in paths]


def test_globs_are_sorted_and_patterns_keep_their_order(folder):
    paths = expand_shards([f"{folder}/b.tar", f"{folder}/a-*.tar"])
    assert names(paths) == ["b.tar", "a-0.tar", "a-1.tar"]


def test_folders_stand_for_their_tars(folder):
    (folder / "odd[1]").mkdir()
    (folder / "odd[1]" / "x.tar").touch()
    (folder / "notes.txt").touch()
    assert names(expand_shards([str(folder)])) == ["a-0.tar", "a-1.tar", "b.tar"]
    assert names(expand_shards([f"{folder}/odd[1]"])) == ["x.tar"]


def test_a_file_whose_name_holds_glob_signs(tmp_path):
    (tmp_path / "a[1].tar").touch()
    assert names(expand_shards([f"{tmp_path}/a[1].tar"])) == ["a[1].tar"]


@pytest.mark.parametrize(
    ("patterns", "named"),
    [
        ([], "shard list is empty"),
        (["{folder}/c-*.tar"], "c-*.tar"),
        (["{folder}/a-{{0..2}}.tar"], "a-2.tar"),
        (["{folder}/b.tar", "{folder}/*.tar"], "b.tar' is listed twice"),
        (["{folder}/b.tar", "{folder}/./b.tar"], "b.tar' is listed twice"),
        (["https://h/{{0,0}}.tar"], "0.tar' is listed twice"),
        (["pipe:cat x"], "would run a shell command"),
        (["PIPE:cat x"], "would run a shell command"),
        (["{folder}/empty"], "holds no *.tar"),
        (["{folder}/none.tar"], "does not exist"),
        (["/dev/zero"], "is no regular file"),
        (["{folder}/{{3..2}}.tar"], "empty range"),
    ],
)
def test_missing_things_are_named(folder, patterns, named):
    (folder / "empty").mkdir()
    with pytest.raises(DataError) as caught:
        expand_shards([p.format(folder=folder) for p in patterns])
    assert named in str(caught.value) and str(caught.value).startswith("data.train: ")


def test_many_shards_are_checked_for_repeats():
    urls = "https://host/{00000..29999}.tar"
    assert len(expand_shards([urls])) == 30_000
    with pytest.raises(DataError, match=r"17\.tar' is listed twice"):
        expand_shards([urls, "https://host/00017.tar"])


def test_kinds_of_path():
    assert is_url("s3://b/a.tar") and is_url("pipe:x") and not is_url("/data/a.tar")
    assert is_pipe("PIPE:x") and not is_pipe("https://pipe:x@host")
    for path in ("a.csv", "A.TSV", "/x/a.parquet", "https://h/a.csv?x=1"):
        assert is_table(path)
    assert not is_table("a.tar") and not is_table("csv")


class TestUrls:
    """Remote shards, and what each mode takes."""

    @pytest.fixture
    def remote(self):
        files = fsspec.filesystem("memory")
        for name in ("b-1.tar", "b-0.tar", "c.txt"):
            files.pipe(f"/bucket/{name}", b"x")
        yield "memory://bucket"
        files.rm("/bucket", recursive=True)

    def test_globs_and_folders(self, remote):
        assert names(expand_shards([f"{remote}/b-*.tar"])) == ["b-0.tar", "b-1.tar"]
        found = expand_shards([f"{remote}/"])
        assert names(found) == ["b-0.tar", "b-1.tar"] and all(is_url(p) for p in found)
        assert fsspec.open(found[0]).open().read() == b"x"

    def test_credentials_are_not_told(self):
        urls = ["https://me:secret@host/a.tar?key=secret"] * 2
        for patterns in (urls, ["pipe:curl -u me:secret https://host/a.tar"]):
            with pytest.raises(DataError) as caught:
                expand_shards(patterns)
            assert "secret" not in str(caught.value) and "a.tar" in str(caught.value)

    def test_a_query_is_no_glob(self):
        url = "https://host/a.tar?token=*[1]"
        assert expand_shards([url]) == [url]

    def test_nothing_matches(self, remote):
        with pytest.raises(DataError, match="nothing matches 'memory://bucket/x"):
            expand_shards([f"{remote}/x*.tar"])

    def test_an_unknown_protocol_is_named(self):
        with pytest.raises(ClipkitError, match="nosuch"):
            expand_shards(["nosuch://b/*.tar"])

    def test_a_listing_that_fails_is_one_clear_error(self, remote, monkeypatch):
        def refused(*args, **options):
            raise PermissionError("https://user:secret@host")

        monkeypatch.setattr(type(fsspec.filesystem("memory")), "glob", refused)
        with pytest.raises(DataError, match="cannot be") as caught:
            expand_shards([f"{remote}/*.tar"])
        assert "secret" not in str(caught.value)

    def test_modes(self, folder):
        url = "https://host/{0..1}.tar"
        both = ["https://host/0.tar", "https://host/1.tar"]
        assert resolve_shards([url], "streaming") == both
        assert resolve_shards([url], "indexed", remote=True) == both
        with pytest.raises(DataError, match="data.cache_dir"):
            resolve_shards([url], "indexed")

    def test_pipes_only_where_allowed_and_streamed(self):
        pipe = "pipe:cat x.tar"
        assert resolve_shards([pipe], "streaming", allow_pipe=True) == [pipe]
        for mode, allow in (("streaming", False), ("indexed", True)):
            with pytest.raises(DataError, match="shell command"):
                resolve_shards([pipe], mode, remote=True, allow_pipe=allow)

    def test_tables_are_local_and_indexed(self, folder):
        (folder / "a.csv").touch()
        table = f"{folder}/a.csv"
        assert resolve_shards([table], "indexed") == [table]
        for path, mode in ((table, "streaming"), ("https://host/a.csv", "indexed")):
            with pytest.raises(DataError, match="list of files"):
                resolve_shards([path], mode, remote=True)


def test_deal():
    check_deal(4, 2, 2)
    check_deal(2, 2, 0)
    with pytest.raises(DataError, match="3 shards cannot be dealt to 2 ranks x 2 workers; lower"):
        check_deal(3, 2, 2)
