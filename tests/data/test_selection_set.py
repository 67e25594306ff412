"""Selection items read from their lines; what is wrong with one is said with its line."""

import json

import pytest

from clipkit.data.selection_set import open_selection
from clipkit.errors import DataError
from tests.fixtures_shards import image_bytes, write_tar

GOOD = {"id": "1", "images": ["a.png"], "texts": ["red", "blue"], "answer": 1, "tags": ["t"]}


def write(root, items, split="test"):
    (root / split).mkdir(parents=True, exist_ok=True)
    lines = [item if isinstance(item, str) else json.dumps(item) for item in items]
    (root / split / "selection.jsonl").write_text("\n".join(lines))
    return root


@pytest.fixture
def root(tmp_path):
    for name, color in (("a", (9, 0, 0)), ("b", (0, 9, 0)), ("c", (0, 0, 9))):
        (tmp_path / f"{name}.png").write_bytes(image_bytes(color))
    return tmp_path


def test_the_three_shapes(root):
    items = [
        {**GOOD, "more": {"ignored": 1}},
        {"id": "2", "images": ["c.png", "b.png"], "texts": ["x"], "answer": 0},
        {"id": "3", "images": ["b.png", "a.png"], "texts": ["u", "v"], "answer": [1, 0]},
    ]
    found = open_selection(write(root, [*items, "", "  "]))
    assert len(found) == 3
    assert [i.shape for i in found.items] == [(1, 2), (2, 1), (2, 2)]
    assert [i.answer for i in found.items] == [(1,), (0,), (1, 0)]
    assert [i.tags for i in found.items] == [("t",), (), ()]
    assert found.source.names == ["a.png", "b.png", "c.png"]
    assert found.rows == {"a.png": 0, "b.png": 1, "c.png": 2}


def test_boxes_are_images_of_their_own(root):
    box = {"file": "a.png", "box": [0, 0, 2, 4.5]}
    items = [
        {**GOOD, "images": [box]},
        {**GOOD, "id": "2", "images": [{**box, "box": [1, 1, 2, 2]}]},
        {**GOOD, "id": "3"},
    ]
    found = open_selection(write(root, items))
    assert len(found.source) == 3
    assert {file for item in found.items for file in item.files} == {"a.png"}
    sizes = {
        item.id: next(found.source.images(row, row + 1)).size
        for item in found.items
        for row in [found.rows[item.images[0]]]
    }
    assert sizes == {"1": (2, 4), "2": (2, 2), "3": (8, 8)}


def shards(root, keys, kind="retrieval"):
    members = [
        (f"{key}.{ext}", data)
        for key in keys
        for ext, data in (("png", image_bytes()), ("txt", b"x"))
    ]
    write_tar(root / "test" / "0.tar", members)
    if kind:
        (root / "dataset_type.txt").write_text(kind)
    return root


def test_images_in_shards_are_sample_keys(tmp_path):
    shards(tmp_path, ["s2", "s1", "s3"])
    found = open_selection(write(tmp_path, [{**GOOD, "images": ["s2"]}]))
    assert found.rows == {"s1": 0, "s2": 1, "s3": 2} and len(found.source) == 3
    with pytest.raises(DataError, match=r"no sample 'a\.png' in the shards"):
        open_selection(write(tmp_path, [GOOD]))
    with pytest.raises(DataError, match="line 1: a box needs an image file"):
        box = {"file": "s1", "box": [0, 0, 1, 1]}
        open_selection(write(tmp_path, [{**GOOD, "images": [box]}]))


def test_shards_of_no_type_and_repeated_keys(tmp_path):
    write(shards(tmp_path, ["s1"], kind=""), [{**GOOD, "images": ["s1"]}])
    with pytest.raises(DataError, match=r"write 'retrieval' into .*dataset_type\.txt"):
        open_selection(tmp_path)
    shards(tmp_path, ["s1", "s2", "s1"])
    with pytest.raises(DataError, match="holds a key twice"):
        open_selection(tmp_path)


def test_identity_follows_items_and_images(root, tmp_path):
    first = open_selection(write(root, [GOOD])).identity
    assert open_selection(root).identity == first
    other = open_selection(write(root, [{**GOOD, "texts": ["red", "green"]}])).identity
    (root / "a.png").write_bytes(image_bytes((1, 2, 3)))
    assert len({first, other, open_selection(root).identity}) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": 3}, "'id' must be"),
        ({"id": ""}, "'id' must be"),
        ({"images": []}, "'images' must be"),
        ({"images": "a.png"}, "'images' must be"),
        ({"images": [3]}, "an image must be a name or"),
        ({"images": [{"file": "a.png"}]}, "an image must be a name or"),
        ({"images": [{"file": "a.png", "box": [0, 0, 1]}]}, "a box must be"),
        ({"images": [{"file": "a.png", "box": [0, 0, 0, 1]}]}, "a box must be"),
        ({"images": [{"file": "a.png", "box": [0, 0, True, 1]}]}, "a box must be"),
        ({"images": [{"file": "a.png", "box": [float("nan"), 0, 1, 1]}]}, "a box must be"),
        ({"images": [{"file": "a.png", "box": [0, 0, 1, 1e300]}]}, "a box must be"),
        ({"texts": []}, "0 texts"),
        ({"texts": ["red"]}, "1 images and 1 texts"),
        ({"texts": ["red", " "]}, "'texts' must be"),
        ({"texts": None}, "'texts' must be"),
        ({"tags": "t"}, "'tags' must be"),
        ({"answer": 2}, "'answer' must be an index from 0 to 1"),
        ({"answer": -1}, "'answer' must be an index"),
        ({"answer": True}, "'answer' must be an index"),
        ({"answer": [1]}, "'answer' must be an index"),
        ({"answer": None}, "'answer' must be an index"),
        ({"images": ["a.png", "b.png"]}, "must give each image its own text"),
        ({"images": ["a.png", "b.png"], "answer": [0, 0]}, "must give each image its own text"),
        ({"images": ["a.png", "b.png"], "answer": [0, True]}, "must give each image its own text"),
        ({"images": ["a.png", "b.png"], "answer": [0, 2]}, "must give each image its own text"),
        ({"images": ["a.png", "b.png", "c.png"]}, "3 images and 2 texts"),
    ],
)
def test_a_bad_item_is_named_with_its_line(root, change, message):
    with pytest.raises(DataError, match=message) as caught:
        open_selection(write(root, [GOOD, {**GOOD, "id": "2", **change}]))
    assert "selection.jsonl, line 2: " in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("line", ["{", "[]", "3", "[" * 100_000])
def test_a_line_that_is_no_item(root, line):
    with pytest.raises(DataError, match="line 1: is no JSON"):
        open_selection(write(root, [line]))


def test_repeated_ids_empty_and_missing_files(root):
    with pytest.raises(DataError, match="line 2: id '1' occurs twice"):
        open_selection(write(root, [GOOD, GOOD]))
    with pytest.raises(DataError, match="holds no items"):
        open_selection(write(root, []))
    with pytest.raises(DataError, match=r"val/selection\.jsonl: no such file"):
        open_selection(root, "val")
    (root / "test" / "selection.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="decode"):
        open_selection(root)


@pytest.mark.parametrize("name", ["../x.png", "/etc/passwd"])
def test_names_do_not_leave_the_root(root, name):
    for entry in (name, {"file": name, "box": [0, 0, 1, 1]}):
        with pytest.raises(DataError, match="leads out of the folder"):
            open_selection(write(root, [{**GOOD, "images": [entry]}]))
    with pytest.raises(DataError, match=r"1 of 1 images are not there, first 'z\.png'"):
        open_selection(write(root, [{**GOOD, "images": ["z.png"]}]))
