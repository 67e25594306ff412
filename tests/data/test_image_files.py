"""Image files in the order of their names; crops, identity, and what a name may not do."""

import os

import numpy as np
import pytest
from PIL import Image

from clipkit.data.image_files import Crop, ImageFiles, inside
from clipkit.errors import DataError
from tests.fixtures_shards import image_bytes


def fill(root, **colors):
    for name, color in colors.items():
        path = root / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes(color))
    return root


def colors_of(source):
    return [image.getpixel((0, 0)) for image in source.images(0, len(source))]


@pytest.fixture
def root(tmp_path):
    return fill(tmp_path / "set", b_png=(2, 0, 0), a_png=(1, 0, 0), deep__c_png=(3, 0, 0))


def test_unique_names_in_sorted_order(root):
    source = ImageFiles(root, ["deep/c.png", "b.png", "a.png", "b.png"])
    assert source.names == ["a.png", "b.png", "deep/c.png"] and len(source) == 3
    assert colors_of(source) == [(1, 0, 0), (2, 0, 0), (3, 0, 0)]
    assert [source.index(n) for n in ("a.png", "b.png", "deep/c.png")] == [0, 1, 2]
    assert [i.getpixel((0, 0)) for i in source.images(1, 2)] == [(2, 0, 0)]
    with pytest.raises(KeyError):
        source.index("z.png")


def test_a_box_is_cut_out_and_two_boxes_of_a_file_are_two_images(tmp_path):
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[..., 0] = np.arange(6)[None]
    pixels[..., 1] = np.arange(4)[:, None]
    Image.fromarray(pixels).save(tmp_path / "a.png")
    boxes = {"left": Crop("a.png", (0, 1, 2, 3)), "right": Crop("a.png", (4, 2, 9, 9))}
    whole, left, right = map(
        np.array, ImageFiles(tmp_path, ["left", "right", "a.png"], boxes).images(0, 3)
    )
    assert np.array_equal(whole, pixels)
    assert np.array_equal(left, pixels[1:4, 0:2])
    assert np.array_equal(right, pixels[2:, 4:])  # cut at the edge, not filled with black


@pytest.mark.parametrize("box", [(8, 0, 2, 2), (0, 0, 0, 5), (-5, 0, 5, 5), (3, 3, -1, 2)])
def test_a_box_without_a_pixel_is_refused(root, box):
    source = ImageFiles(root, ["x"], {"x": Crop("a.png", box)})
    with pytest.raises(DataError, match=r"a\.png: box .* holds no pixel of the image \(8 x 8\)"):
        list(source.images(0, 1))


def test_identity_follows_bytes_order_and_boxes_not_the_place(root, tmp_path):
    names = ["a.png", "b.png"]
    base = ImageFiles(root, names)
    moved = ImageFiles(fill(tmp_path / "other", a_png=(1, 0, 0), b_png=(2, 0, 0)), names)
    assert base.identity == moved.identity and base.place != moved.place
    swapped = ImageFiles(fill(tmp_path / "swapped", a_png=(2, 0, 0), b_png=(1, 0, 0)), names)
    crops = [
        ImageFiles(root, ["a.png", "b.png"], {"b.png": Crop("b.png", (0, 0, w, 4))}) for w in (3, 4)
    ]
    found = [base, swapped, *crops, ImageFiles(root, ["a.png"])]
    assert len({s.identity for s in found}) == len(found)
    assert len({s.place for s in [base, *crops, ImageFiles(root, ["a.png"])]}) == 4
    # which of the files a row shows counts
    files = {"p": "a.png", "q": "b.png"}
    third = [
        {n: Crop(f, (0, 0, 4, 4)) for n, f in {**files, "r": r}.items()} for r in files.values()
    ]
    assert len({ImageFiles(root, ["p", "q", "r"], boxes).identity for boxes in third}) == 2


@pytest.mark.parametrize(
    "name",
    [
        "../a.png",
        "x/../../a.png",
        "/etc/passwd",
        "C:\\a.png",
        "..\\a.png",
        "",
        "\\\\host\\a",
        "a\0",
    ],
)
def test_names_do_not_leave_the_root(root, name):
    assert not inside(name)
    with pytest.raises(DataError, match="leads out of the folder"):
        ImageFiles(root, ["a.png", name])
    with pytest.raises(DataError, match="leads out of the folder"):
        ImageFiles(root, ["x"], {"x": Crop(name, (0, 0, 1, 1))})


def test_names_that_only_look_odd_are_fine(root):
    for name in ("a..png", "...png", "a b/ü.png", "a/./b.png"):
        assert inside(name)


def test_missing_and_broken_images_are_named(root):
    with pytest.raises(DataError, match=r"2 of 3 images are not there, first 'y\.png'"):
        ImageFiles(root, ["a.png", "z.png", "y.png"])
    (root / "b.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"b\.png: "):
        list(ImageFiles(root, ["b.png"]).images(0, 1))
    with pytest.raises(DataError, match="pixels"):
        list(ImageFiles(root, ["a.png"]).images(0, 1, max_pixels=10))
    os.truncate(root / "a.png", 60_000_000)  # sparse: costs no disk
    with pytest.raises(DataError, match="larger than 50 MB"):
        list(ImageFiles(root, ["a.png"]).images(0, 1))


def test_a_pipe_is_no_image(root):
    os.mkfifo(root / "pipe.png")
    with pytest.raises(DataError, match="not there"):
        ImageFiles(root, ["pipe.png"])


def test_nothing_is_an_empty_source(root):
    source = ImageFiles(root, [])
    assert len(source) == 0 and list(source.images(0, 0)) == [] and source.identity
