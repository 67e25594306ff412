"""A set of any type is read whole, and what is wrong is named."""

import json

import pytest

from clipkit.data.eval_sets import find_sets
from clipkit.eval.validate import validate_set
from tests.fixtures_encoder import write_color_set
from tests.fixtures_shards import image_bytes, write_tar


def validate(root):
    (place,) = find_sets(root)
    return [validate_set(place, kind) for kind in place.types]


@pytest.fixture
def mixed(tmp_path):
    root = tmp_path / "mixed"
    (root / "images").mkdir(parents=True)
    (root / "images" / "a.png").write_bytes(image_bytes())
    (root / "queries.jsonl").write_text(json.dumps({"query_id": "q", "text": "a"}))
    document = {"corpus_id": "d", "text": "b", "image": "images/a.png"}
    (root / "mixed_corpus.jsonl").write_text(json.dumps(document))
    (root / "qrels.tsv").write_text("q\td\t1\n")
    return root


def test_whole_sets_of_every_type(tmp_path, mixed):
    colors = write_color_set(tmp_path / "colors", [0, 1, 2])
    pairs = write_color_set(tmp_path / "pairs", [0, 1], ["a red", "a green"])
    item = {"id": "i", "images": ["0000"], "texts": ["a", "b"], "answer": 0, "tags": []}
    (pairs / "test" / "selection.jsonl").write_text(json.dumps(item) + "\n")
    assert [(v.samples, v.problems) for v in validate(colors)] == [(3, [])]
    assert [(v.samples, v.problems) for v in validate(pairs)] == [(2, []), (1, [])]
    assert [(v.samples > 0, v.problems) for v in validate(mixed)] == [(True, [])]


def test_every_broken_image_is_counted(tmp_path):
    root = write_color_set(tmp_path, [0, 1, 2, 3])
    members = [(f"{i}.{k}", b"0" if k == "cls" else b"bad") for i in "ab" for k in ("png", "cls")]
    write_tar(root / "test" / "0.tar", members)
    (found,) = validate(root)
    assert found.samples == 4 and len(found.problems) == 2
    assert "sample 'a'" in found.problems[0]


def test_a_broken_image_of_a_mixed_set_is_named(mixed):
    (mixed / "images" / "a.png").write_bytes(b"no image")
    (found,) = validate(mixed)
    assert len(found.problems) == 1 and "a.png" in found.problems[0]


def test_targets_are_read(tmp_path):
    root = write_color_set(tmp_path, [0, 1])
    write_tar(root / "test" / "0.tar", [("a.png", image_bytes()), ("a.cls", b"nine")])
    (found,) = validate(root)
    assert "label" in found.problems[0] and found.samples == 2
