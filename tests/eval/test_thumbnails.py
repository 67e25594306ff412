"""Thumbnails show the right sample, small and encoded anew; what is not there is said."""

import base64
import io
import json

import pytest
from PIL import Image

from clipkit.eval.thumbnails import Thumbnails, thumbnail
from tests.fixtures_encoder import COLORS, write_color_set
from tests.fixtures_shards import image_bytes


def picture(uri):
    prefix = "data:image/jpeg;base64,"
    assert uri.startswith(prefix)
    image = Image.open(io.BytesIO(base64.b64decode(uri[len(prefix) :], validate=True)))
    image.load()
    return image


def near(uri, color):
    pixel = picture(uri).getpixel((3, 3))
    return max(abs(a - b) for a, b in zip(pixel, COLORS[color])) < 30


def test_keys_lead_to_their_images_over_shards(tmp_path):
    write_color_set(tmp_path, [0, 1, 2, 3])
    made = Thumbnails()
    for key, color in zip(("0000", "0001", "0002", "0003"), COLORS):
        assert near(made.get(str(tmp_path), "test", key), color)
    assert made.problem(str(tmp_path), "test") is None


def test_shards_beside_the_class_names(tmp_path):
    write_color_set(tmp_path, [0, 1, 2, 3])
    for shard in (tmp_path / "test").iterdir():
        shard.rename(tmp_path / f"test-0000{shard.name}")
    (tmp_path / "test").rmdir()
    made = Thumbnails()
    assert near(made.get(str(tmp_path), "test", "0003"), list(COLORS)[3])
    assert made.problem(str(tmp_path), "test") is None


def test_files_below_the_folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.png").write_bytes(image_bytes(COLORS["blue"]))
    assert near(Thumbnails().get(str(tmp_path), "test", "a/b.png"), "blue")


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a\0b", "", "absent"])
def test_a_name_never_leads_out_of_the_folder(tmp_path, name):
    (tmp_path / "secret.png").write_bytes(image_bytes())
    (tmp_path / "set").mkdir()
    made = Thumbnails()
    assert made.get(str(tmp_path / "set"), "test", name) is None
    assert "holds no sample" in made.problem(str(tmp_path / "set"), "test")


def test_a_large_photograph_is_small_and_loses_its_metadata():
    image = Image.new("RGB", (400, 200), (9, 99, 199))
    exif = Image.Exif()
    exif[0x010E] = "the photographer's home"
    out = io.BytesIO()
    image.save(out, "JPEG", exif=exif)
    uri = thumbnail(Image.open(io.BytesIO(out.getvalue())))
    assert picture(uri).size == (96, 48) and not picture(uri).getexif()
    assert picture(thumbnail(image, 224)).size == (224, 112) and image.size == (400, 200)
    assert b"photographer" not in base64.b64decode(uri.split(",")[1])


def test_a_data_set_that_is_gone_is_said_and_nothing_fails(tmp_path):
    made = Thumbnails()
    gone = str(tmp_path / "gone")
    assert made.get(gone, "test", "0000") is None
    assert made.problem(gone, "test") == f"{gone} is not there any more"


def test_a_damaged_image_is_said(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG no")
    made = Thumbnails()
    assert made.get(str(tmp_path), "test", "a.png") is None
    assert "a.png" in made.problem(str(tmp_path), "test")


def test_an_unsure_name_is_no_problem_and_unwanted_ones_are_not_read(tmp_path):
    write_color_set(tmp_path, [0, 1])
    made = Thumbnails()
    assert made.get(str(tmp_path), "test", "a caption", sure=False) is None
    assert made.problem(str(tmp_path), "test") is None
    unwanted = Thumbnails(wanted=False)
    assert unwanted.get(str(tmp_path / "gone"), "test", "0000") is None
    assert unwanted.problem(str(tmp_path / "gone"), "test") is None


def test_a_selection_item_with_its_images_and_texts(tmp_path):
    write_color_set(tmp_path, [0, 2], ["red", "blue"])
    lines = [
        {"id": "one", "images": ["0001"], "texts": ["red", "blue"], "answer": 1, "tags": []},
        {"id": "two", "images": ["0000", "0001"], "texts": ["red"], "answer": 0, "tags": []},
    ]
    text = "\n".join(map(json.dumps, lines))
    (tmp_path / "test" / "selection.jsonl").write_text(text)
    made = Thumbnails()
    one, two = (made.item(str(tmp_path), "test", name) for name in ("one", "two"))
    assert one.texts == ["red", "blue"] and one.answer == [1] and near(one.pictures[0], "blue")
    assert [near(uri, c) for uri, c in zip(two.pictures, ("red", "blue"))] == [True, True]
    assert two.answer == [] and made.item(str(tmp_path), "test", "three") is None


def test_items_of_a_set_that_has_none(tmp_path):
    write_color_set(tmp_path, [0, 1], ["red", "green"])
    made = Thumbnails()
    assert made.item(str(tmp_path), "test", "one") is None
    assert "selection.jsonl" in made.problem(str(tmp_path), "test")
