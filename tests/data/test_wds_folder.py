"""CLIP_benchmark's layout; evaluation sets must be whole."""

import io

import numpy as np
import pytest
from PIL import Image

from clipkit.data.wds_folder import open_folder
from clipkit.errors import DataError
from tests.fixtures_encoder import write_color_set
from tests.fixtures_shards import image_bytes, write_tar


def build(root, shards=((0, 1), (2,)), kind=None, name="test/{}.tar"):
    for s, labels in enumerate(shards):
        members = []
        for i, label in enumerate(labels):
            members += [
                (f"s{s:02d}{i}.png", image_bytes((label * 50, 0, 0))),
                (f"s{s:02d}{i}.cls", b"%d\n" % label),
            ]
            members += [(f"s{s:02d}{i}.txt", b"one %d\n\n two \n" % label)]
        write_tar(root / name.format(s), members)
    (root / "classnames.txt").write_text("red\ngreen\nblue\n")
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
    for claimed in ("13\n", "9" * 7):  # the second names more shards than memory holds
        (tmp_path / "test" / "nshards.txt").write_text(claimed)
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


def test_samples_stand_in_the_order_of_their_keys(tmp_path):
    root = write_color_set(tmp_path, [0, 1, 2, 3, 1])
    first, second = root / "test" / "0.tar", root / "test" / "1.tar"
    keys, labels = open_folder(root).keys, open_folder(root).labels()
    first.rename(root / "test" / "2.tar")
    second.rename(root / "test" / "0.tar")
    (root / "test" / "2.tar").rename(root / "test" / "1.tar")
    folder = open_folder(root)
    assert folder.keys == keys == sorted(keys) and folder.labels() == labels == [0, 1, 2, 3, 1]
    assert [image.getpixel((0, 0))[0] for image in folder.images(2, 4)] == [10, 250]


def multi_hot(rows, **options):
    out = []
    for row in rows:
        data = io.BytesIO()
        np.save(data, np.array(row, **options), allow_pickle=True)
        out.append(data.getvalue())
    return out


def write_multilabel(root, arrays):
    members = []
    for i, data in enumerate(arrays):
        members += [(f"{i}.png", image_bytes()), (f"{i}.npy", data)]
    write_tar(root / "test" / "0.tar", members)
    (root / "classnames.txt").write_text("cat\ndog\nowl\n")
    (root / "zeroshot_classification_templates.txt").write_text("a {c}\n")
    (root / "dataset_type.txt").write_text("multilabel\n")
    return root


def test_sets_of_labels(tmp_path):
    root = write_multilabel(tmp_path, multi_hot([[0, 1, 1], [0, 0, 0]]))
    folder = open_folder(root, kind="multilabel")
    assert folder.label_sets().tolist() == [[False, True, True], [False, False, False]]
    assert folder.classnames == ["cat", "dog", "owl"]


@pytest.mark.parametrize(
    "arrays",
    [
        multi_hot([[0, 1]]),
        multi_hot([[0, 2, 1]]),
        multi_hot([[0.5, 1, 1]]),
        multi_hot([[{}, 1, 1]], dtype=object),  # would need unpickling
        [b"\x93NUMPY nothing"],
        [b""],
    ],
)
def test_what_is_no_set_of_labels_is_named(tmp_path, arrays):
    folder = open_folder(write_multilabel(tmp_path, arrays))
    with pytest.raises(DataError, match="sample '0'.*no row of 3 zeros and ones"):
        folder.label_sets()


def test_an_unknown_type_is_told(tmp_path):
    root = write_multilabel(tmp_path, [])
    write_tar(root / "test" / "0.tar", [("a.png", image_bytes())])
    (root / "dataset_type.txt").write_text("multi_label")
    with pytest.raises(DataError, match="did you mean 'multilabel'"):
        open_folder(root)


def test_a_thread_of_an_image_is_refused_before_it_is_resized(tmp_path):
    root = write_color_set(tmp_path, [0, 1])
    out = io.BytesIO()
    Image.new("RGB", (1, 1001)).save(out, "PNG")
    write_tar(root / "test" / "0.tar", [("a.png", out.getvalue()), ("a.cls", b"0")])
    with pytest.raises(DataError, match="sample 'a': 1 x 1001 pixels"):
        list(open_folder(root).images(0, 2))


def test_only_a_line_feed_ends_a_name(tmp_path):
    root = write_color_set(tmp_path, [0, 1])
    (root / "classnames.txt").write_text("red\u2028ish\x85\ngreen\r\nblue\x0b!\nwhite\n\n")
    assert open_folder(root).classnames == ["red\u2028ish", "green", "blue\x0b!", "white"]
    (root / "classnames.txt").write_text("red\n\ngreen\n")
    with pytest.raises(DataError, match="classnames.txt: line 2 is blank"):
        open_folder(root)


def test_keys_are_unique(tmp_path):
    root = write_color_set(tmp_path, [0, 1])
    members = [("a.png", image_bytes()), ("a.cls", b"0")]
    for shard in "01":
        write_tar(root / "test" / f"{shard}.tar", members)
    assert open_folder(root).keys == ["0/a", "1/a"]
    write_tar(root / "test" / "0.tar", [*members, ("b.png", image_bytes()), *members])
    with pytest.raises(DataError, match="0.tar holds a key twice"):
        open_folder(root)
