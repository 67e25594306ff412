"""Image bytes -> (3, H, W) uint8 RGB in HWC memory; limits before any decoding.

JPEG, PNG (first frame) and WebP (first frame) are opened, by content and not by name; every other
format is refused: what is rare in image-text data is not worth another parser of foreign bytes.
libjpeg-turbo decodes JPEG, through simplejpeg (quicker, and able to decode at a reduced size),
or where its wheel is missing through torchvision; their pixels are equal.
Pillow decodes PNG and WebP, and the JPEGs that those refuse.
"""

from __future__ import annotations

import io
import re
import warnings
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from clipkit.data.bad_samples import BadSample
from clipkit.errors import ConfigError

try:
    import simplejpeg
except ImportError:  # no wheel for this platform
    simplejpeg = None

Exif = Literal["ignore", "apply"]
_FORMATS = ("JPEG", "PNG", "WEBP")
_MAX_ASPECT = 1000
_MAX_SCANS = 50  # of a JPEG; each is a pass over all pixels, programs write some 10
_SCAN = re.compile(rb"\xff\xda\0")  # how each one starts; found otherwise once in 16 million bytes
_CMYK = 4  # channels
_ORIENTATION = 0x0112
# EXIF orientation -> (swap height and width, then dimensions to flip) of a (3, H, W) tensor
_TURNS = {
    2: (False, (2,)),
    3: (False, (1, 2)),
    4: (False, (1,)),
    5: (True, ()),
    6: (True, (2,)),
    7: (True, (1, 2)),
    8: (True, (1,)),
}


class _JpegHeader(NamedTuple):
    """What the segments in front of a JPEG's pixels tell."""

    height: int
    width: int
    channels: int
    exif: bytes


def decode_image(
    data: bytes,
    *,
    max_pixels: int,
    max_bytes: int,
    exif: Exif = "ignore",
    at_least: tuple[int, int] | None = None,
) -> Tensor:
    """Decode to (3, H, W) uint8 RGB, in HWC memory.

    Args:
        data: The file.
        max_pixels: Limit on width x height, checked before decoding.
        max_bytes: Limit on the file.
        exif: Whether a photograph's orientation tag turns it.
        at_least: (H, W) that are enough: a JPEG is decoded at the smallest of libjpeg's scales
            1/8, 1/4, 3/8, 1/2 that gives no less. Needs simplejpeg. None: full size.

    Raises:
        BadSample: Too large, of an extreme shape or too many scans, of another format, cut short
            or damaged.
    """
    if len(data) > max_bytes:
        raise BadSample("too_many_bytes", f"{len(data)} bytes")
    _check_scans(data)
    header = _jpeg_header(data)
    if header:  # a JPEG of unknown size goes to Pillow, which checks it
        _check_pixels(header.width, header.height, max_pixels)
        _check_sides(header.width, header.height)
        turn = _orientation(header.exif) if exif == "apply" else 1
        if at_least and _swaps(turn):
            at_least = at_least[::-1]
        image = _decode_jpeg(data, header, at_least)
        if image is not None:
            return _turned(image, turn)
    opened, block = _open(data, max_pixels)
    pixels = torch.from_numpy(np.array(check_shape(opened))).permute(2, 0, 1)
    return _turned(pixels, _orientation(block) if exif == "apply" else 1)


def image_size(data: bytes, exif: Exif = "ignore") -> tuple[int, int] | None:
    """(H, W) that `decode_image` gives at full size, from a JPEG's header; None: not known so."""
    header = _jpeg_header(data)
    if header is None:
        return None
    swap = exif == "apply" and _swaps(_orientation(header.exif))
    return (header.width, header.height) if swap else (header.height, header.width)


def check_scaled_decoder() -> None:
    """Raises ConfigError unless JPEGs can be decoded at a reduced size."""
    if simplejpeg is None:
        raise ConfigError(
            "data.decode: scaled needs simplejpeg; pip install simplejpeg, or set data.decode=exact"
        )


def open_image(data: bytes, max_pixels: int) -> Image.Image:
    """Open with Pillow by an allow-list of formats.

    Alpha is laid on white, 16 bit scaled, EXIF ignored.

    Raises:
        BadSample: Unreadable, of another format, larger than `max_pixels` or of too many scans.
    """
    _check_scans(data)
    return _open(data, max_pixels)[0]


def check_shape(image: Image.Image) -> Image.Image:
    """The image, if resizing its short side to a model's size keeps it small.

    Raises:
        BadSample: A side is more than a thousand times the other.
    """
    _check_sides(*image.size)
    return image


def _check_scans(data: bytes) -> None:
    scans = len(_SCAN.findall(data)) if data[:2] == b"\xff\xd8" else 0
    if scans > _MAX_SCANS:
        raise BadSample("too_many_scans", f"{scans} scans")


def _check_sides(width: int, height: int) -> None:
    if max(width, height) > _MAX_ASPECT * min(width, height):
        raise BadSample("extreme_shape", f"{width} x {height} pixels")


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise BadSample("too_many_pixels", f"{width} x {height} pixels")


def _open(data: bytes, max_pixels: int) -> tuple[Image.Image, bytes]:
    """RGB image and its EXIF block."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
            _check_pixels(image.width, image.height, max_pixels)
            image.load()
            return _as_rgb(image), image.info.get("exif") or b""
    except BadSample:
        raise
    except UnidentifiedImageError:  # its text holds an address
        raise BadSample("unreadable_image", "no JPEG, PNG or WebP that can be read") from None
    except Image.DecompressionBombError as error:  # beyond Pillow's own limit, 179 million
        raise BadSample("too_many_pixels", str(error)) from None
    except Exception as error:  # on hostile bytes Pillow's plugins raise whatever their parsers do
        raise BadSample("unreadable_image", str(error)) from None


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image).astype(np.uint32)
        image = Image.fromarray((values * 255 // 65535).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _decode_jpeg(
    data: bytes, header: _JpegHeader, at_least: tuple[int, int] | None
) -> Tensor | None:
    """None: the decoders refuse it (damage, some CMYK); Pillow decides which."""
    if at_least:
        check_scaled_decoder()
    if simplejpeg is not None and header.channels != _CMYK:  # its CMYK has other colours
        height, width = at_least or (0, 0)
        if 2 * height > header.height or 2 * width > header.width:
            height = width = 0  # 5/8 and up are hardly faster than the full size
        try:
            pixels = simplejpeg.decode_jpeg(data, min_height=height, min_width=width)
            return torch.from_numpy(pixels).permute(2, 0, 1)
        except ValueError:  # also for what the others only warn of
            pass
    try:
        raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return decode_jpeg(raw, mode=ImageReadMode.RGB)
    except RuntimeError:
        return None


def _swaps(orientation: int) -> bool:
    """Whether height and width change places."""
    return _TURNS.get(orientation, (False, ()))[0]


def _turned(image: Tensor, orientation: int) -> Tensor:
    """The image upright, in HWC memory."""
    if orientation not in _TURNS:
        return image
    swap, flips = _TURNS[orientation]
    image = (image.transpose(1, 2) if swap else image).flip(flips)
    return image.permute(1, 2, 0).contiguous().permute(2, 0, 1)


def _orientation(exif: bytes) -> int:
    """The orientation tag of an EXIF block; 1, upright, where there is none or it is damaged."""
    if not exif:
        return 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tags = Image.Exif()
            tags.load(exif)
            return int(tags.get(_ORIENTATION, 1))
    except Exception:  # foreign bytes again; a picture is not lost for its metadata
        return 1


def _jpeg_header(data: bytes) -> _JpegHeader | None:
    """None if a JPEG's frame header is not right behind plain segments, or it is no JPEG."""
    if data[:3] != b"\xff\xd8\xff":
        return None
    exif = b""
    i = 2
    while i + 9 < len(data):
        if data[i] != 0xFF:
            return None
        marker = data[i + 1]
        if marker == 0xFF:
            i += 1
            continue
        if marker < 0xC0 or 0xD0 <= marker <= 0xD9:  # junk or a marker without length: not for us
            return None
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height = int.from_bytes(data[i + 5 : i + 7], "big")
            width = int.from_bytes(data[i + 7 : i + 9], "big")
            return _JpegHeader(height, width, data[i + 9], exif) if height and width else None
        length = int.from_bytes(data[i + 2 : i + 4], "big")
        if marker == 0xE1 and not exif and data[i + 4 : i + 10] == b"Exif\0\0":
            exif = data[i + 4 : i + 2 + length]
        i += 2 + length
    return None
