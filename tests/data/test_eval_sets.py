"""A folder's files tell what it can be read as."""

import pytest

from clipkit.data.eval_sets import EvalSet, find_sets, types_of
from clipkit.errors import DataError
from tests.fixtures_encoder import write_color_set


def test_types(tmp_path):
    colors = write_color_set(tmp_path / "colors", [0, 1])
    pairs = write_color_set(tmp_path / "pairs", [0, 1], ["a", "b"])
    assert types_of(colors, "test") == ("classification",)
    assert types_of(pairs, "test") == ("retrieval",)
    assert types_of(colors, "other") == ()
    (colors / "dataset_type.txt").write_text("multilabel\n")
    assert types_of(colors, "test") == ("multilabel",)
    (pairs / "test" / "selection.jsonl").write_text("{}")
    assert types_of(pairs, "test") == ("retrieval", "selection")
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "mixed_corpus.jsonl").write_text("{}")
    assert types_of(tmp_path / "mixed", "test") == ("mixed_search",)


def test_shards_beside_the_names_are_a_split(tmp_path):
    root = write_color_set(tmp_path / "colors", [0, 1])
    (root / "test" / "0.tar").rename(root / "val-00000.tar")
    assert types_of(root, "val") == ("classification",)


def test_a_set_or_a_folder_of_sets(tmp_path):
    for name in ("b", "a"):
        write_color_set(tmp_path / name, [0, 1])
    (tmp_path / "notes").mkdir()
    alone = find_sets(tmp_path / "a")
    assert alone == [EvalSet((tmp_path / "a").resolve(), "test", ("classification",))]
    assert [s.name for s in find_sets(tmp_path)] == ["a", "b"]
    assert EvalSet(tmp_path / "a", "unseen", ()).name == "a/unseen"


def test_nothing_there(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        find_sets(tmp_path / "absent")
    with pytest.raises(DataError, match="neither it nor a folder in it holds test shards"):
        find_sets(tmp_path)
