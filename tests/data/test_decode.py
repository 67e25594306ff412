"""Bytes -> RGB, or BadSample: odd formats right, hostile ones refused before they are decoded."""

import contextlib
import io
import random
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from clipkit.data.bad_samples import BadSample
from clipkit.data.decode import _jpeg_pixels, decode_image, open_image
from tests.fixtures_shards import image_bytes

LIMITS = {"max_pixels": 1_000_000, "max_bytes": 1_000_000}
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


def test_16_bit_rgb():
    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    pixel = struct.pack(">HHH", 65535, 32768, 0)
    rows = zlib.compress((b"\0" + pixel * 5) * 5)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 5, 5, 16, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    assert decode(data)[:, 0, 0].tolist() == [255, 128, 0]


def test_gray_and_cmyk_jpeg():
    gray = Image.fromarray(SMOOTH[..., 0])
    near(decode(encode(gray, "JPEG", quality=95)), np.repeat(SMOOTH[..., :1], 3, 2))
    data = encode(Image.fromarray(SMOOTH).convert("CMYK"), "JPEG", quality=95)
    near(decode(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), 3.0)


def test_exif_orientation_is_ignored():
    image = Image.fromarray(SMOOTH)
    exif = image.getexif()
    exif[0x0112] = 6
    assert decode(encode(image, "JPEG", exif=exif.tobytes())).shape == (3, 24, 32)


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


class TestLimits:
    """Sizes are known from headers: nothing large is ever decoded."""

    @pytest.fixture(autouse=True)
    def _no_decoding(self, monkeypatch):
        def refuse(*args, **kwargs):
            raise AssertionError("decoded a bomb")

        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", refuse)
        monkeypatch.setattr("clipkit.data.decode.decode_jpeg", refuse)

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
    def test_too_many_pixels(self, kind):
        assert cause(image_bytes(kind=kind, side=33), max_pixels=1024) == "too_many_pixels"

    def test_png_bomb(self):
        data = bytearray(image_bytes(kind="PNG"))
        data[16:24] = struct.pack(">II", 60_000, 60_000)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        assert cause(bytes(data)) in ("too_many_pixels", "unreadable_image")

    @pytest.mark.parametrize("extra", [b"\0", b"\xff\x01", b"\xff\xd0"])
    def test_jpeg_whose_frame_header_hides_behind_junk(self, extra):
        data = image_bytes(kind="JPEG", side=33)
        hidden = data[:20] + extra + data[20:]  # after the JFIF segment; decoders skip it
        assert cause(hidden, max_pixels=1024) in ("too_many_pixels", "unreadable_image")

    @pytest.mark.parametrize("marker", [b"\xff\x01", b"\xff\xd0"])
    def test_jpeg_with_a_decoy_frame_header(self, marker):
        """Who takes the bytes behind a marker without length for a length lands on the decoy."""
        decoy = b"\xff\xc0\0\x11\x08\0\x01\0\x01"  # 1 x 1
        payload = (bytes(65501) + decoy).ljust(65531, b"\0")
        segment = b"\xff\xe1" + struct.pack(">H", 65533) + payload
        data = image_bytes(kind="JPEG", side=33)
        hidden = data[:20] + marker + segment + data[20:]
        assert cause(hidden, max_pixels=1024) in ("too_many_pixels", "unreadable_image")

    def test_too_many_bytes(self):
        assert cause(b"x" * 11, max_bytes=10) == "too_many_bytes"


def test_jpeg_pixels_from_the_header():
    assert _jpeg_pixels(image_bytes(kind="JPEG", side=33)) == 33 * 33
    assert _jpeg_pixels(b"\xff\xd8\xff\xe0\0\0") == 0
    assert _jpeg_pixels(b"\xff\xd8" + b"\xff" * 100) == 0


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_random_damage_is_a_bad_sample_or_an_image_never_a_crash(kind):
    source = Image.fromarray(RNG.integers(0, 256, (12, 12, 3), dtype=np.uint8)).quantize(16)
    data = encode(source.convert("RGB") if kind != "PNG" else source, kind)
    generator = random.Random(1)
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(generator.randint(1, 6)):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        with contextlib.suppress(BadSample):
            assert decode(bytes(damaged)).shape[0] == 3


def test_any_error_of_the_image_library_is_a_bad_sample(monkeypatch):
    def fail(*args, **kwargs):
        raise struct.error("unpack requires a buffer of 4 bytes")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(BadSample, match="unpack"):
        open_image(image_bytes(), 10_000)
