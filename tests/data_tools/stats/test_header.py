"""Headers are read by the formats of training, without decoding, and hostile ones are refused."""

import struct
import zlib

import pytest
from PIL import Image

from clipkit.data import decode
from clipkit.data.bad_samples import BadSample
from data_tools.stats import header
from data_tools.stats.header import Header, check_header, read_header
from tests.data_tools.stats.shards import encoded, oriented


def test_limits_and_formats_are_those_of_training() -> None:
    assert header.FORMATS == decode._FORMATS and header.MAX_ASPECT == decode._MAX_ASPECT


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encoded((7, 3), "JPEG"), Header(7, 3, "JPEG", "RGB", None)),
        (encoded((7, 3), "PNG", "P"), Header(7, 3, "PNG", "P", None)),
        (encoded((7, 3), "PNG", "I;16"), Header(7, 3, "PNG", "I;16", None)),
        (encoded((7, 3), "JPEG", "CMYK"), Header(7, 3, "JPEG", "CMYK", None)),
        (oriented(6, "JPEG"), Header(12, 6, "JPEG", "RGB", 6)),
        (oriented(3, "WEBP"), Header(12, 6, "WEBP", "RGB", 3)),
        (oriented(9, "JPEG"), Header(12, 6, "JPEG", "RGB", None)),
        (encoded((7, 3), "JPEG", exif=b"Exif\0\0broken"), Header(7, 3, "JPEG", "RGB", None)),
        (encoded((7, 3), "PNG")[:60], Header(7, 3, "PNG", "RGB", None)),  # pixels missing
    ],
)
def test_facts(data: bytes, expected: Header, monkeypatch) -> None:
    def never(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr(Image.Image, "load", never)
    assert read_header(data) == expected
    check_header(expected)


@pytest.mark.parametrize("data", [b"", b"\x89PNG", b"<svg/>", encoded((5, 5), "GIF")])
def test_other_formats_are_refused(data: bytes) -> None:
    with pytest.raises(BadSample) as error:
        read_header(data)
    assert error.value.cause == "unreadable_image"


def png_of(width: int, height: int) -> bytes:
    """A PNG that only claims its size."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + b"\0" * 4


@pytest.mark.parametrize(
    ("size", "cause"),
    [
        ((10_000, 10_000), "too_many_pixels"),
        ((60_000, 60_000), "too_many_pixels"),
        ((5000, 4), "extreme_shape"),
    ],
)
def test_bombs_and_strips(size: tuple[int, int], cause: str) -> None:
    with pytest.raises(BadSample) as error:
        check_header(read_header(png_of(*size)))
    assert error.value.cause == cause


def test_what_is_said_of_junk_is_the_same_each_time() -> None:
    with pytest.raises(BadSample) as found:
        read_header(b"junk")
    assert found.value.cause == "unreadable_image" and "0x" not in str(found.value)
