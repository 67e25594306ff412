"""Folders of images, one a class, become an evaluation set; mistakes are named."""

import numpy as np
import pytest
from PIL import Image

from clipkit.data.wds_folder import open_folder
from clipkit.errors import DataError
from data_tools import __main__ as command
from data_tools.wds import write_wds
from tests.fixtures_shards import noise_bytes

KINDS = {"jpg": "JPEG", "JPEG": "JPEG", "png": "PNG", "webp": "WEBP"}


def fill(folder, count, first=0, suffix="png"):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        (folder / f"{i:03d}.{suffix}").write_bytes(noise_bytes(i, KINDS[suffix]))


def pixels(folder):
    return [np.array(image).tobytes() for image in folder.images(0, len(folder))]


def content(root):
    """Path -> bytes, without the indexes that a reader leaves beside shards."""
    files = [p for p in root.rglob("*") if p.is_file() and not p.name.endswith(".idx.npz")]
    return {str(p.relative_to(root)): p.read_bytes() for p in files}


def test_train_and_test_splits(tmp_path):
    source, out = tmp_path / "in", tmp_path / "deep" / "out"
    fill(source / "train" / "sea_lion", 3)
    fill(source / "train" / "cat", 2, first=10)
    fill(source / "test" / "cat", 1, first=20, suffix="jpg")
    fill(source / "test" / "cat" / "more", 1, first=21, suffix="JPEG")
    fill(source / "test" / "ant", 1, first=30, suffix="webp")
    (source / "test" / "ant" / "notes.txt").write_text("no image")
    (source / "test" / ".hidden").mkdir()
    counts = write_wds(source, out, templates=("a {c}", "the {c}"))
    assert counts == {"train": 5, "test": 3}
    train, test = open_folder(out, "train"), open_folder(out)
    assert test.classnames == train.classnames == ["ant", "cat", "sea lion"]
    assert test.templates == ["a {c}", "the {c}"]
    assert train.labels() == [1, 1, 2, 2, 2] and test.labels() == [0, 1, 1]
    assert pixels(train)[0] == np.array(Image.open(source / "train/cat/010.png")).tobytes()
    assert pixels(test)[2] == (
        np.array(Image.open(source / "test/cat/more/021.JPEG").convert("RGB")).tobytes()
    )
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def test_class_folders_are_test_or_are_cut(tmp_path):
    source = tmp_path / "in"
    fill(source / "a", 10)
    fill(source / "b", 5, first=10)
    fill(source / "train", 1, first=20)  # a class of that name, not a split
    assert write_wds(source, tmp_path / "whole") == {"test": 16}
    assert write_wds(source, tmp_path / "cut", train_share=0.6) == {"train": 9, "test": 7}
    train, test = open_folder(tmp_path / "cut", "train"), open_folder(tmp_path / "cut")
    assert np.bincount(train.labels(), minlength=3).tolist() == [6, 3, 0]
    assert np.bincount(test.labels()).tolist() == [4, 2, 1]
    whole = pixels(open_folder(tmp_path / "whole"))
    assert sorted(pixels(train) + pixels(test)) == sorted(whole)
    write_wds(source, tmp_path / "again", train_share=0.6)
    assert content(tmp_path / "again") == content(tmp_path / "cut")
    write_wds(source, tmp_path / "other", train_share=0.6, seed=1)
    assert content(tmp_path / "other") != content(tmp_path / "cut")


def test_mistakes_are_named_and_leave_nothing(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    with pytest.raises(DataError, match="in: no such folder"):
        write_wds(source, out)
    source.mkdir()
    with pytest.raises(DataError, match="holds no class folders.*<class>/<image>"):
        write_wds(source, out)
    fill(source / "test" / "a", 3)
    (source / "train").mkdir()
    with pytest.raises(DataError, match="train: holds no class folders"):
        write_wds(source, out)
    (source / "train").rmdir()
    with pytest.raises(DataError, match="leave --train-share out"):
        write_wds(source, out, train_share=0.5)
    with pytest.raises(DataError, match="choose at least 0"):
        write_wds(source, out, train_share=1.0)
    with pytest.raises(DataError, match="leaves no image to train"):
        write_wds(source / "test", out, train_share=0.01)
    with pytest.raises(DataError, match="has no {c}"):
        write_wds(source, out, templates=("a photo",))
    (source / "test" / "a" / "zz.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"zz\.jpg: cannot be read as an image"):
        write_wds(source, out)
    fill(source / "train" / "a", 1)  # the split before the broken one goes with it
    with pytest.raises(DataError, match=r"zz\.jpg"):
        write_wds(source, out)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_a_folder_with_things_in_it_is_kept(tmp_path):
    fill(tmp_path / "in" / "a", 2)
    out = tmp_path / "out"
    out.mkdir()
    write_wds(tmp_path / "in", out)
    before = content(out)
    with pytest.raises(DataError, match="out exists"):
        write_wds(tmp_path / "in", out)
    assert content(out) == before


def test_command_line(tmp_path, monkeypatch, capsys):
    fill(tmp_path / "in" / "a", 2)
    arguments = ["data_tools", "wds", str(tmp_path / "in"), str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", [*arguments, "--template", "one {c}", "--template", "two {c}"])
    with pytest.raises(SystemExit) as done:
        command.main()
    assert done.value.code in (0, None)
    assert capsys.readouterr().out == f"wrote {tmp_path / 'out'}: 2 test\n"
    assert open_folder(tmp_path / "out").templates == ["one {c}", "two {c}"]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as failed:
        command.main()
    assert failed.value.code == 3
    assert capsys.readouterr().err.startswith("error: ")
