"""CLIP_benchmark's layout; evaluation sets must be whole."""

import pytest

from clipkit.data.wds_folder import open_folder
from clipkit.errors import DataError
from tests.fixtures_shards import image_bytes, write_tar


def build(root, shards=((0, 1), (2,)), kind=None, name="test/{}.tar"):
    for s, labels in enumerate(shards):
        members = []
        for i, label in enumerate(labels):
            members += [
                (f"s{s}{i}.png", image_bytes((label * 50, 0, 0))),
                (f"s{s}{i}.cls", b"%d\n" % label),
            ]
            members += [(f"s{s}{i}.txt", b"one %d\n\n two \n" % label)]
        write_tar(root / name.format(s), members)
    (root / "classnames.txt").write_text("red\ngreen\n\nblue\n")
    (root / "zeroshot_classification_templates.txt").write_text("a {c}\nthe {c}\n")
    if kind:
        (root / "dataset_type.txt").write_text(kind + "\n")
    return root


def test_classification(tmp_path):
    folder = open_folder(build(tmp_path))
    assert (folder.kind, len(folder), folder.classnames) == (
        "classification",
        3,
        ["red", "green", "blue"],
    )
    assert folder.templates == ["a {c}", "the {c}"] and folder.labels() == [0, 1, 2]
    assert [image.getpixel((0, 0))[0] for image in folder.images(0, 3)] == [0, 50, 100]
    assert [image.getpixel((0, 0))[0] for image in folder.images(1, 3)] == [50, 100]


def test_retrieval_needs_no_class_names(tmp_path):
    build(tmp_path, kind="retrieval")
    (tmp_path / "classnames.txt").unlink()
    folder = open_folder(tmp_path)
    assert folder.kind == "retrieval"
    assert folder.captions() == [["one 0", "two"], ["one 1", "two"], ["one 2", "two"]]


def test_other_splits_as_folder_or_prefix(tmp_path):
    build(tmp_path, name="unseen-{}.tar")
    assert len(open_folder(tmp_path, "unseen")) == 3
    with pytest.raises(DataError, match="test shards not found"):
        open_folder(tmp_path)


def test_more_than_ten_shards_follow_nshards(tmp_path):
    build(tmp_path, shards=[(i % 3,) for i in range(12)])
    (tmp_path / "test" / "nshards.txt").write_text("12\n")
    assert open_folder(tmp_path).labels() == [i % 3 for i in range(12)]
    (tmp_path / "test" / "nshards.txt").write_text("13\n")
    with pytest.raises(DataError, match=r"12\.tar not found"):
        open_folder(tmp_path)


@pytest.mark.parametrize("name", ["classnames.txt", "zeroshot_classification_templates.txt"])
def test_missing_or_empty_lists(tmp_path, name):
    build(tmp_path)
    (tmp_path / name).write_text("\n")
    with pytest.raises(DataError, match=f"{name}"):
        open_folder(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=f"{name} is missing"):
        open_folder(tmp_path)


def test_missing_folder(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        open_folder(tmp_path / "absent")


def test_damaged_shard(tmp_path):
    build(tmp_path)
    shard = tmp_path / "test" / "1.tar"
    shard.write_bytes(shard.read_bytes()[:700])
    with pytest.raises(DataError, match=r"1\.tar is damaged: cut short"):
        open_folder(tmp_path)


@pytest.mark.parametrize("label", [b"3", b"-1", b"red", b""])
def test_labels_outside_the_class_names(tmp_path, label):
    build(tmp_path)
    write_tar(tmp_path / "test" / "0.tar", [("a.png", image_bytes()), ("a.cls", label)])
    with pytest.raises(DataError, match="sample 'a'.*3 classes"):
        open_folder(tmp_path).labels()


def test_missing_members_and_damaged_images_are_named(tmp_path):
    build(tmp_path)
    write_tar(tmp_path / "test" / "0.tar", [("a.png", b"no image"), ("b.txt", b" \n")])
    folder = open_folder(tmp_path)
    with pytest.raises(DataError, match=r"sample 'a' has no \.cls member"):
        folder.labels()
    with pytest.raises(DataError, match=r"0\.tar: sample 'a'"):
        list(folder.images(0, 1))
    with pytest.raises(DataError, match=r"sample 'b' has no \.jpg/\.jpeg/\.png/\.webp member"):
        list(folder.images(1, 2))
    with pytest.raises(DataError, match=r"sample 'a' has no \.txt member"):
        folder.captions()
