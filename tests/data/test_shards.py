"""Patterns -> paths; whatever is missing is named."""

import pytest

from clipkit.data.shards import expand_braces, expand_shards, is_url, resolve_shards
from clipkit.errors import DataError


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{08..10}.tar", ["a-08.tar", "a-09.tar", "a-10.tar"]),
        ("{x,y}-{0..1}", ["x-0", "x-1", "y-0", "y-1"]),
        ("a{}b", ["ab"]),
        ("{3..2}", []),
    ],
)
def test_braces(pattern, expected):
    assert expand_braces(pattern) == expected


@pytest.fixture
def folder(tmp_path):
    for name in ("a-1.tar", "a-0.tar", "b.tar"):
        (tmp_path / name).touch()
    return tmp_path


def test_globs_are_sorted_and_patterns_keep_their_order(folder):
    paths = expand_shards([f"{folder}/b.tar", f"{folder}/a-*.tar"])
    assert [p.rpartition("/")[2] for p in paths] == ["b.tar", "a-0.tar", "a-1.tar"]


@pytest.mark.parametrize(
    ("patterns", "named"),
    [
        ([], "shard list is empty"),
        (["{folder}/c-*.tar"], "c-*.tar"),
        (["{folder}/a-{{0..2}}.tar"], "a-2.tar"),
        (["{folder}/b.tar", "{folder}/*.tar"], "b.tar' is listed twice"),
        (["pipe:cat x"], "would run a shell command"),
        (["{folder}"], "does not exist"),
        (["{folder}/{{3..2}}.tar"], "empty range"),
    ],
)
def test_missing_things_are_named(folder, patterns, named):
    with pytest.raises(DataError) as caught:
        expand_shards([p.format(folder=folder) for p in patterns])
    assert named in str(caught.value) and str(caught.value).startswith("data.train: ")


def test_urls_only_when_streaming(folder):
    url = "https://host/{0..1}.tar"
    assert is_url(url) and not is_url(f"{folder}/b.tar")
    assert resolve_shards([url], "streaming") == ["https://host/0.tar", "https://host/1.tar"]
    with pytest.raises(DataError, match="data.mode=streaming"):
        resolve_shards([url], "indexed")
    with pytest.raises(DataError, match="shell command"):
        resolve_shards(["pipe:cat x"], "streaming")
