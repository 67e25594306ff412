"""Hostile images are refused before they are decoded, and none ends the process."""

import contextlib
import random
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from clipkit.bench.measure import extra_mb
from clipkit.data import decode as room
from clipkit.data.bad_samples import BadSample
from tests.data.test_decode import RNG, cause, decode, encode, png
from tests.fixtures_shards import image_bytes, repeated_scans


class TestLimits:
    """Sizes are known from headers: nothing large is ever decoded."""

    @pytest.fixture(autouse=True)
    def _no_decoding(self, monkeypatch):
        def refuse(*args, **kwargs):
            raise AssertionError("decoded a bomb")

        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", refuse)
        monkeypatch.setattr("clipkit.data.decode.decode_jpeg", refuse)
        if room.simplejpeg is not None:
            monkeypatch.setattr("simplejpeg.decode_jpeg", refuse)

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

    @pytest.mark.parametrize("progressive", [True, False])
    def test_too_many_scans(self, progressive):
        data = repeated_scans(51, progressive=progressive)
        assert len(data) < 3000 and cause(data) == "too_many_scans"
        with pytest.raises(BadSample, match="51 scans") as caught:
            room.open_image(data, 1_000_000)
        assert caught.value.cause == "too_many_scans"

    def test_too_many_bytes(self):
        assert cause(b"x" * 11, max_bytes=10) == "too_many_bytes"


def test_scans_as_real_files_have_them_are_decoded():
    assert decode(repeated_scans(50)).shape == (3, 8, 8)
    text = [(b"teXt", b"\xff\xda\0" * 60)]
    assert decode(png(2, 8, bytes(24), 8, 8, text)).shape == (3, 8, 8), "only a JPEG has scans"


def bombs():
    """Name -> (a small file that unpacks to much, its cause)."""
    packed = zlib.compress(bytes(20_000_000))
    webp = bytearray(encode(Image.new("RGB", (8, 8)), "WEBP", lossless=True))
    webp[21:25] = struct.pack("<I", 16382 | 16382 << 14)  # 16383 x 16383
    jpeg = bytearray(encode(Image.new("L", (4000, 4000)), "JPEG", quality=1, progressive=True))
    frame = jpeg.index(b"\xff\xc2")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 16_000, 16_000)
    return {
        "png": (encode(Image.new("1", (7500, 7500)), "PNG"), "too_many_pixels"),
        "jpeg": (bytes(jpeg), "too_many_pixels"),
        "webp": (bytes(webp), "too_many_pixels"),
        "text": (png(2, 8, b"abc", 1, 1, [(b"zTXt", b"a\0\0" + packed)]), "unreadable_image"),
        "profile": (png(2, 8, b"abc", 1, 1, [(b"iCCP", b"a\0\0" + packed)]), "unreadable_image"),
    }


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.parametrize("name", ["png", "jpeg", "webp", "text", "profile"])
def test_bombs_stay_packed(name):
    data, expected = bombs()[name]
    assert len(data) < 100_000
    found = []
    limits = {"max_pixels": 50_000_000, "max_bytes": 50_000_000}
    assert extra_mb(lambda: found.append(cause(data, **limits))) < 15
    assert found == [expected]


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
