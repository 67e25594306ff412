"""What an image's header tells, without decoding a pixel."""

from __future__ import annotations

import io
import warnings
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from clipkit.data.bad_samples import BadSample

FORMATS = ("JPEG", "PNG", "WEBP")  # those that training reads
MAX_BYTES = 50_000_000
MAX_PIXELS = 50_000_000
MAX_ASPECT = 1000
_ORIENTATION = 0x0112


class Header(NamedTuple):
    """Facts of one image.

    Attributes:
        width, height: Pixels, as stored.
        format: "JPEG", "PNG" or "WEBP", by content.
        mode: Pillow's, such as "RGB".
        orientation: Of EXIF, 1 to 8; None: not given, or behind the pixels.
    """

    width: int
    height: int
    format: str
    mode: str
    orientation: int | None


def read_header(data: bytes) -> Header:
    """Open with Pillow by the formats allowed, and load nothing.

    Raises:
        BadSample: Unreadable, of another format, or so large that Pillow refuses it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                orientation = _orientation(image.info.get("exif"))
                return Header(image.width, image.height, str(image.format), image.mode, orientation)
    except UnidentifiedImageError:  # its text holds an address
        raise BadSample("unreadable_image", "no JPEG, PNG or WebP that can be read") from None
    except Image.DecompressionBombError as error:  # Pillow's own limit is above ours
        raise BadSample("too_many_pixels", str(error)) from None
    except Exception as error:  # on hostile bytes Pillow's plugins raise whatever their parsers do
        raise BadSample("unreadable_image", str(error)) from None


def check_header(header: Header) -> None:
    """Hold the sides against the limits of training.

    Raises:
        BadSample: Too many pixels, or an extreme shape.
    """
    if header.width * header.height > MAX_PIXELS:
        raise BadSample("too_many_pixels", f"{header.width} x {header.height} pixels")
    if max(header.width, header.height) > MAX_ASPECT * min(header.width, header.height):
        raise BadSample("extreme_shape", f"{header.width} x {header.height} pixels")


def _orientation(block: object) -> int | None:
    # image.getexif() would decode a PNG in search of a block behind its pixels
    if not isinstance(block, bytes):
        return None
    exif = Image.Exif()
    try:
        exif.load(block)
        value = exif.get(_ORIENTATION)
    except Exception:  # as above; an image with a broken block is an image
        return None
    return value if isinstance(value, int) and 1 <= value <= 8 else None
