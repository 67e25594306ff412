"""Benchmarks become sets that can be evaluated; missing images, folders in use, one move."""

import json
import sys

import pytest

from clipkit.data.selection_set import open_selection
from clipkit.dist.group import World
from clipkit.errors import DataError
from clipkit.eval.embed import Embedder
from clipkit.eval.selection import SelectionEval
from data_tools import selection
from data_tools.__main__ import main
from data_tools.selection import convert
from data_tools.selection_formats import NOTES, READERS
from tests.fixtures_encoder import COLORS, color_encoder
from tests.fixtures_shards import image_bytes


def fill(folder, *names):
    """Images named after their colours."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        color = next((c for k, c in COLORS.items() if k in name), (7, 7, 7))
        path.write_bytes(image_bytes(color))
    return folder


def sugarcrepe(folder, *files):
    rows = {
        str(i): {"filename": f, "caption": f"a {f[:-4]} thing", "negative_caption": "white"}
        for i, f in enumerate(files)
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "swap_att.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture
def source(tmp_path):
    return sugarcrepe(tmp_path / "source", "red.png", "blue.png")


@pytest.fixture
def images(tmp_path):
    return fill(tmp_path / "coco", "red.png", "blue.png", "unused.png")


def listing(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_images_from_elsewhere_are_copied(tmp_path, source, images):
    done = convert("sugarcrepe", source, images, tmp_path / "out")
    assert (done.items, done.images, done.left_out, done.note) == (2, 2, 0, "")
    names = ["images/blue.png", "images/red.png", "test/selection.jsonl"]
    assert listing(tmp_path / "out") == names
    assert sorted(p.name for p in tmp_path.iterdir()) == ["coco", "out", "source"]
    result = SelectionEval(str(tmp_path / "out"), "x").run(Embedder(color_encoder(), World()))
    assert result.metrics["acc"] == 1.0 and result.details["per_tag"][0]["tag"] == "swap_att"


@pytest.mark.parametrize("place", [".", "val2017"])
def test_images_below_out_are_named_and_left_where_they_are(tmp_path, source, place):
    out = tmp_path / "out"
    images = fill(out / place, "red.png", "blue.png")
    before = listing(out)
    convert("sugarcrepe", source, images, out, split="val")
    assert listing(out) == sorted([*before, "val/selection.jsonl"])
    assert sorted(open_selection(out, "val").source.names) == before
    with pytest.raises(DataError, match="val: exists"):
        convert("sugarcrepe", source, images, out, split="val")
    assert listing(out) == sorted([*before, "val/selection.jsonl"])


def test_missing_images_are_counted(tmp_path, images):
    source = sugarcrepe(tmp_path / "source", "red.png", "gone.png", "lost.png")
    with pytest.raises(DataError, match=r"2 of 3 items are not there, first 'gone\.png'"):
        convert("sugarcrepe", source, images, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    done = convert("sugarcrepe", source, images, tmp_path / "out", allow_missing=True)
    assert (done.items, done.left_out) == (1, 2)
    (images / "red.png").unlink()
    with pytest.raises(DataError, match="no item whose images are there"):
        convert("sugarcrepe", source, images, tmp_path / "none", allow_missing=True)


def test_boxes_endings_and_second_places(tmp_path):
    images = fill(tmp_path / "in", "a.jpeg", "SWiG/x.jpg", "Texts/1.jpg", "2.jpg")
    row = {"image_path": "a.jpeg", "true_caption": "t", "false_caption": "f", "relation_name": "on"}
    box = {"bbox_x": 1, "bbox_y": 2, "bbox_w": 3, "bbox_h": 4}
    (tmp_path / "vg.json").write_text(json.dumps([{**row, **box}]))
    done = convert("aro", tmp_path / "vg.json", images, tmp_path / "aro")
    assert "macro=true" in done.note
    (image,) = open_selection(tmp_path / "aro").source.images(0, 1)
    assert image.size == (3, 4)
    (tmp_path / "q.csv").write_text("id,type,statement\n1,Texts,one\n2,Texts,two\n")
    convert("mmvp", tmp_path / "q.csv", images, tmp_path / "mmvp")
    names = ["images/2.jpg", "images/Texts/1.jpg"]
    assert open_selection(tmp_path / "mmvp").source.names == names
    pair = {"image_0": "a", "image_1": "2.jpg", "caption_0": "x", "caption_1": "y"}
    (tmp_path / "w.jsonl").write_text(json.dumps(pair))
    convert("winoground", tmp_path / "w.jsonl", images, tmp_path / "wino")
    (item,) = open_selection(tmp_path / "wino").items
    assert item.images == ("images/a.jpeg", "images/2.jpg") and item.answer == (0, 1)


def test_the_right_text_wins_wherever_it_stands_in_the_source(tmp_path):
    images = fill(tmp_path / "in", "red.png", "blue.png")
    row = {
        "image": "blue.png",
        "caption": "blue",
        "negative_image": "red.png",
        "negative_caption": "red",
        "type": "swap",
    }
    (tmp_path / "b.jsonl").write_text(json.dumps(row))
    convert("bivlc", tmp_path / "b.jsonl", images, tmp_path / "out")
    result = SelectionEval(str(tmp_path / "out"), "x").run(Embedder(color_encoder(), World()))
    assert result.metrics["acc"] == result.metrics["second_image_text_acc"] == 1.0


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname"])
def test_names_do_not_leave_the_image_folder(tmp_path, images, name):
    fill(tmp_path, "secret.png")
    with pytest.raises(DataError, match="leads out of its folder"):
        convert("sugarcrepe", sugarcrepe(tmp_path / "s", name), images, tmp_path / "out")


def test_a_folder_in_use_is_refused(tmp_path, source, images):
    (tmp_path / "out").mkdir()
    convert("sugarcrepe", source, images, tmp_path / "out")  # an empty one is fine
    with pytest.raises(DataError, match="out: exists; name a new folder"):
        convert("sugarcrepe", source, images, tmp_path / "out", split="val")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file: exists"):
        convert("sugarcrepe", source, images, tmp_path / "file")
    with pytest.raises(DataError, match="--images .*nowhere: no such folder"):
        convert("sugarcrepe", source, tmp_path / "nowhere", tmp_path / "new")
    with pytest.raises(
        DataError, match="unknown benchmark 'sugarcreep'; did you mean 'sugarcrepe'"
    ):
        convert("sugarcreep", source, images, tmp_path / "new")
    for split in ("../x", "a/b", ""):
        with pytest.raises(DataError, match="must be the name of a folder"):
            convert("sugarcrepe", source, images, tmp_path / "new", split=split)


@pytest.mark.parametrize("below", [False, True])
def test_a_failed_conversion_leaves_nothing(tmp_path, source, images, monkeypatch, below):
    out = images if below else tmp_path / "out"
    before = listing(tmp_path)

    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(selection, "open_selection", fail)
    with pytest.raises(OSError, match="disk full"):
        convert("sugarcrepe", source, images, out)
    assert listing(tmp_path) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["coco", "source"]


def test_notes_belong_to_benchmarks():
    assert set(NOTES) <= set(READERS)


def test_command_line(tmp_path, source, images, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["clipkit-data", "selection", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0

    assert run("sugarcrepe", source, "--images", images, tmp_path / "out") == 0
    assert "2 items over 2 images" in capsys.readouterr().out
    (images / "red.png").unlink()
    assert run("sugarcrepe", source, tmp_path / "new", "--images", images) == DataError.exit_status
    assert capsys.readouterr().err.count("\n") == 1
    arguments = ("sugarcrepe", source, tmp_path / "new", "--images", images, "--allow-missing")
    assert run(*arguments) == 0
    assert "left out 1 items without their images" in capsys.readouterr().out
    captions = tmp_path / "test.json"
    captions.write_text(json.dumps([{"image": "blue.png", "caption": ["a b c d e f"]}]))
    assert run("order", captions, tmp_path / "order", "--images", images, "--seed", 3) == 0
    assert "need a part-of-speech tagger" in capsys.readouterr().out
