"""Bytes -> RGB, or BadSample: every format right, whichever library decodes it."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from clipkit.data import decode as room
from clipkit.data.bad_samples import BadSample
from clipkit.data.decode import (
    _jpeg_header,
    check_scaled_decoder,
    decode_image,
    image_size,
    open_image,
)
from clipkit.errors import ConfigError
from tests.fixtures_shards import image_bytes

LIMITS = {"max_pixels": 1_000_000, "max_bytes": 1_000_000}
needs_simplejpeg = pytest.mark.skipif(room.simplejpeg is None, reason="needs simplejpeg")
RNG = np.random.default_rng(0)
SMOOTH = np.linspace(0, 255, 24 * 32 * 3).reshape(24, 32, 3).astype(np.uint8)


def encode(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def decode(data, **limits):
    return decode_image(data, **{**LIMITS, **limits})


def cause(data, **limits):
    with pytest.raises(BadSample) as caught:
        decode(data, **limits)
    return caught.value.cause


def near(got, expected, tolerance=4.0):
    assert got.shape == expected.transpose(2, 0, 1).shape and got.dtype.is_signed is False
    difference = np.abs(got.numpy().astype(float) - expected.transpose(2, 0, 1)).mean()
    assert difference < tolerance, difference


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("JPEG", {"quality": 95}, 4.0),
        ("JPEG", {"quality": 95, "progressive": True}, 4.0),
        ("PNG", {}, 0.01),
        ("WEBP", {"lossless": True}, 0.01),
    ],
)
def test_rgb_in_every_format(kind, options, tolerance):
    near(decode(encode(Image.fromarray(SMOOTH), kind, **options)), SMOOTH, tolerance)


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"<html>"])
def test_a_detail_says_the_same_each_time(data):
    with pytest.raises(BadSample, match="^no JPEG, PNG or WebP that can be read$") as caught:
        decode(data)
    assert caught.value.cause == "unreadable_image"


def test_content_decides_not_the_name():
    assert decode(image_bytes((1, 2, 3), "PNG"))[:, 0, 0].tolist() == [1, 2, 3]  # a PNG named .jpg


def test_alpha_is_laid_on_white():
    rgba = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    rgba.putpixel((0, 0), (255, 0, 0, 255))
    got = decode(encode(rgba, "PNG"))
    assert got[:, 0, 0].tolist() == [255, 0, 0] and got[:, 2, 2].tolist() == [255, 255, 255]
    half = decode(encode(Image.new("LA", (4, 4), (0, 128)), "PNG"))
    assert 126 <= half.float().mean() <= 128


def test_palette_with_and_without_transparency():
    palette = Image.fromarray(SMOOTH).quantize(256)
    near(decode(encode(palette, "PNG")), np.asarray(palette.convert("RGB")), 0.01)
    index = palette.getpixel((0, 0))
    got = decode(encode(palette, "PNG", transparency=index))
    assert got[:, 0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("transform", ["1", "L", "P"])
def test_gray_and_bilevel(transform):
    image = Image.fromarray(SMOOTH).convert(transform)
    near(decode(encode(image, "PNG")), np.asarray(image.convert("RGB")), 0.01)


def test_16_bit_gray_is_scaled_not_clipped():
    values = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    got = decode(encode(Image.fromarray(values), "PNG")).float()
    assert abs(float(got.mean()) - 127.5) < 1 and got.min() == 0 and got.max() == 255
    near(got.to(dtype=torch.uint8), np.repeat((values / 257)[..., None], 3, 2), 1.0)


def png_chunk(kind, data):
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def png(color_type, depth, row, width, height, extra=()):
    """A PNG by hand: every row is `row`."""
    head = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    chunks = [(b"IHDR", head), *extra, (b"IDAT", zlib.compress((b"\0" + row) * height))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*c) for c in (*chunks, (b"IEND", b"")))


@pytest.mark.parametrize(
    ("color_type", "depth", "row", "color"),
    [
        (2, 16, struct.pack(">HHH", 65535, 32768, 0) * 8, (255, 128, 0)),
        (6, 16, struct.pack(">HHHH", 65535, 0, 0, 0) * 8, (255, 255, 255)),
        (6, 16, struct.pack(">HHHH", 0, 0, 65535, 65535) * 8, (0, 0, 255)),
        (0, 16, struct.pack(">H", 27499) * 8, (106, 106, 106)),  # 27499 / 257 = 107.0
        (4, 16, struct.pack(">HH", 0, 32768) * 8, (127, 127, 127)),
        (0, 1, b"\xaa", (127, 127, 127)),  # black and white in turn
        (0, 2, b"\x55\x55", (85, 85, 85)),
    ],
)
def test_png_bit_depths(color_type, depth, row, color):
    got = decode(png(color_type, depth, row, 8, 4)).float().mean((1, 2))
    assert got.numpy() == pytest.approx(color, abs=1.01)


def flat(mode, color):
    return Image.new(mode, (24, 16), color)


FORMATS = {  # name -> (kind, image, options, mean colour)
    "jpeg": ("JPEG", flat("RGB", (200, 60, 30)), {"quality": 95}, (200, 60, 30)),
    "jpeg 4:4:4 progressive": (
        "JPEG",
        flat("RGB", (200, 60, 30)),
        {"quality": 95, "subsampling": 0, "progressive": True},
        (200, 60, 30),
    ),
    "jpeg gray": ("JPEG", flat("L", 90), {"quality": 95}, (90, 90, 90)),
    "jpeg cmyk (inverted, Adobe)": (
        "JPEG",
        flat("RGB", (200, 60, 30)).convert("CMYK"),
        {"quality": 95},
        (200, 60, 30),
    ),
    "png": ("PNG", flat("RGB", (200, 60, 30)), {}, (200, 60, 30)),
    "png alpha": ("PNG", flat("RGBA", (200, 60, 30, 51)), {}, (244, 216, 210)),
    "png gray alpha": ("PNG", flat("LA", (100, 51)), {}, (224, 224, 224)),
    "png palette": ("PNG", flat("RGB", (200, 60, 30)).quantize(4), {}, (200, 60, 30)),
    "png palette, transparent": (
        "PNG",
        flat("RGB", (200, 60, 30)).quantize(4),
        {"transparency": 0},
        (255, 255, 255),
    ),
    "png gray": ("PNG", flat("L", 90), {}, (90, 90, 90)),
    "png 1 bit": ("PNG", flat("1", 1), {}, (255, 255, 255)),
    "png rgb, transparent colour": (
        "PNG",
        flat("RGB", (200, 60, 30)),
        {"transparency": (200, 60, 30)},
        (255, 255, 255),
    ),
    "webp": ("WEBP", flat("RGB", (200, 60, 30)), {"quality": 95}, (200, 60, 30)),
    "webp alpha": ("WEBP", flat("RGBA", (200, 60, 30, 51)), {"lossless": True}, (244, 216, 210)),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("library", ["simplejpeg", "torchvision"])
def test_mean_colour_of_every_format(name, library, monkeypatch):
    if library == "torchvision":
        monkeypatch.setattr(room, "simplejpeg", None)
    kind, image, options, color = FORMATS[name]
    got = decode(encode(image, kind, **options))
    assert got.shape == (3, 16, 24) and got.dtype == torch.uint8
    assert got.float().mean((1, 2)).numpy() == pytest.approx(color, abs=3)
    assert got.permute(1, 2, 0).is_contiguous(), "HWC memory: what the resize is quick on"


@needs_simplejpeg
@pytest.mark.parametrize("size", [(101, 77), (64, 64), (33, 90), (7, 5)])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_both_jpeg_libraries_give_the_same_pixels(size, subsampling, progressive, monkeypatch):
    pixels = np.random.default_rng(1).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    for mode, quality in (("RGB", 90), ("RGB", 20), ("L", 90)):
        options = {"quality": quality, "subsampling": subsampling, "progressive": progressive}
        data = encode(image.convert(mode), "JPEG", **options)
        got = decode(data)
        monkeypatch.setattr(room, "simplejpeg", None)
        assert torch.equal(got, decode(data))
        monkeypatch.undo()


def test_gray_and_cmyk_jpeg():
    gray = Image.fromarray(SMOOTH[..., 0])
    near(decode(encode(gray, "JPEG", quality=95)), np.repeat(SMOOTH[..., :1], 3, 2))
    data = encode(Image.fromarray(SMOOTH).convert("CMYK"), "JPEG", quality=95)
    near(decode(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), 3.0)


def turned(kind, orientation, **options):
    image = Image.fromarray(SMOOTH)
    exif = image.getexif()
    exif[0x0112] = orientation
    return encode(image, kind, exif=exif.tobytes(), **options)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "options"), [("JPEG", {"quality": 95}), ("PNG", {}), ("WEBP", {"lossless": True})]
)
def test_exif_orientation_as_pillow_applies_it(kind, options, orientation):
    data = turned(kind, orientation, **options)
    image = Image.open(io.BytesIO(data))
    got = decode(data, exif="apply")
    near(got, np.asarray(ImageOps.exif_transpose(image).convert("RGB")), 0.01)
    assert got.permute(1, 2, 0).is_contiguous()
    assert decode(data).shape == (3, 24, 32), "ignored unless asked for"
    if kind == "JPEG":
        assert image_size(data, "apply") == tuple(got.shape[1:]) and image_size(data) == (24, 32)
    else:
        assert image_size(data) is None


@pytest.mark.parametrize("exif", [b"", b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"x" * 99])
def test_damaged_exif_costs_no_image(exif):
    for kind in ("JPEG", "PNG", "WEBP"):
        data = encode(Image.fromarray(SMOOTH), kind, exif=exif)
        assert decode(data, exif="apply").shape == (3, 24, 32)


def test_an_orientation_that_does_not_exist_is_upright():
    assert decode(turned("JPEG", 9), exif="apply").shape == (3, 24, 32)


@needs_simplejpeg
class TestScaled:
    """A smaller decode of the same picture."""

    PHOTO = Image.fromarray(SMOOTH).resize((640, 480), Image.Resampling.BICUBIC)

    @pytest.mark.parametrize(
        ("at_least", "shape"),
        [
            ((480, 640), (480, 640)),
            ((240, 1), (240, 320)),
            ((1, 320), (240, 320)),
            ((180, 100), (180, 240)),
            ((241, 320), (480, 640)),
            ((60, 80), (60, 80)),
            ((1, 1), (60, 80)),
        ],
    )
    def test_smallest_scale_that_suffices(self, at_least, shape):
        data = encode(self.PHOTO, "JPEG", quality=95)
        got = decode(data, at_least=at_least)
        assert tuple(got.shape[1:]) == shape
        near(got, np.asarray(self.PHOTO.resize(shape[::-1], Image.Resampling.BOX)), 3.0)

    def test_sizes_are_meant_after_turning(self):
        image = self.PHOTO
        exif = image.getexif()
        exif[0x0112] = 6
        data = encode(image, "JPEG", quality=95, exif=exif.tobytes())
        assert decode(data, at_least=(321, 200), exif="apply").shape == (3, 640, 480)
        assert decode(data, at_least=(240, 100), exif="apply").shape == (3, 240, 180)

    def test_other_formats_and_cmyk_come_whole(self):
        for image, kind in ((self.PHOTO, "PNG"), (self.PHOTO.convert("CMYK"), "JPEG")):
            assert decode(encode(image, kind), at_least=(10, 10)).shape == (3, 480, 640)

    def test_a_cut_file_is_as_bad_as_at_full_size(self):
        data = encode(self.PHOTO, "JPEG")
        assert cause(data[:-2], at_least=(60, 80)) == "unreadable_image"


def test_scaled_without_its_library_says_what_to_install(monkeypatch):
    monkeypatch.setattr(room, "simplejpeg", None)
    with pytest.raises(ConfigError, match=r"pip install simplejpeg"):
        check_scaled_decoder()


@pytest.mark.parametrize("library", ["simplejpeg", "torchvision"])
def test_a_jpeg_without_its_end_is_bad(library, monkeypatch):
    if library == "torchvision":
        monkeypatch.setattr(room, "simplejpeg", None)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    data = encode(Image.fromarray(pixels), "JPEG")
    assert data[-2:] == b"\xff\xd9" and decode(data + b"trailing bytes").shape == (3, 40, 40)
    assert cause(data[:-2]) == "unreadable_image"


@pytest.mark.parametrize(("kind", "side"), [("JPEG", 2002), ("PNG", 2002), ("WEBP", 2002)])
def test_extreme_shapes_are_bad(kind, side):
    assert cause(encode(Image.new("RGB", (side, 2)), kind)) == "extreme_shape"
    assert decode(encode(Image.new("RGB", (side - 2, 2)), kind)).shape == (3, 2, side - 2)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.3, 0.8])
def test_truncated(kind, share):
    pixels = Image.fromarray(RNG.integers(0, 256, (40, 40, 3), dtype=np.uint8))
    data = encode(pixels, kind)
    assert cause(data[: int(len(data) * share)]) == "unreadable_image"


@pytest.mark.parametrize(
    "data", [b"", b"<html>", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP"]
)
def test_no_image(data):
    assert cause(data) == "unreadable_image"


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM", "ICO"])
def test_other_formats_are_refused(kind):
    assert cause(image_bytes(kind=kind, side=16)) == "unreadable_image"


def test_size_from_the_header():
    header = _jpeg_header(image_bytes(kind="JPEG", side=33))
    assert header and header[:3] == (33, 33, 3)
    assert _jpeg_header(b"\xff\xd8\xff\xe0\0\0") is None
    assert _jpeg_header(b"\xff\xd8" + b"\xff" * 100) is None


def test_any_error_of_the_image_library_is_a_bad_sample(monkeypatch):
    def fail(*args, **kwargs):
        raise struct.error("unpack requires a buffer of 4 bytes")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(BadSample, match="unpack"):
        open_image(image_bytes(), 10_000)
