"""Image bytes -> (3, H, W) uint8 RGB.

torchvision for JPEG, Pillow for the rest; limits before any decoding.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from clipkit.data.bad_samples import BadSample

_FORMATS = ("JPEG", "PNG", "WEBP")
_MAX_ASPECT = 1000


def open_image(data: bytes, max_pixels: int) -> Image.Image:
    """Open with Pillow by an allow-list of formats.

    Alpha is laid on white, 16 bit scaled, EXIF ignored.

    Raises:
        BadSample: Unreadable, of another format, or larger than `max_pixels`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
            if image.width * image.height > max_pixels:
                raise BadSample("too_many_pixels", f"{image.width} x {image.height} pixels")
            image.load()
            return _as_rgb(image)
    except BadSample:
        raise
    except Exception as error:  # on hostile bytes Pillow's plugins raise whatever their parsers do
        raise BadSample("unreadable_image", str(error)) from None


def check_shape(image: Image.Image) -> Image.Image:
    """The image, if resizing its short side to a model's size keeps it small.

    Raises:
        BadSample: A side is more than a thousand times the other.
    """
    if max(image.size) > _MAX_ASPECT * min(image.size):
        raise BadSample("extreme_shape", f"{image.width} x {image.height} pixels")
    return image


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image).astype(np.uint32)
        image = Image.fromarray((values * 255 // 65535).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _jpeg_pixels(data: bytes) -> int:
    """Width x height from a JPEG's frame header, 0 if there is none right behind plain segments."""
    i = 2
    while i + 9 < len(data):
        if data[i] != 0xFF:
            return 0
        marker = data[i + 1]
        if marker == 0xFF:
            i += 1
            continue
        if marker < 0xC0 or 0xD0 <= marker <= 0xD9:  # junk or a marker without length: not for us
            return 0
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[i + 5 : i + 7], "big") * int.from_bytes(
                data[i + 7 : i + 9], "big"
            )
        i += 2 + int.from_bytes(data[i + 2 : i + 4], "big")
    return 0


def decode_image(data: bytes, *, max_pixels: int, max_bytes: int) -> Tensor:
    """Decode to (3, H, W) uint8 RGB, in HWC memory.

    Raises:
        BadSample: Too large, or unreadable.
    """
    if len(data) > max_bytes:
        raise BadSample("too_many_bytes", f"{len(data)} bytes")
    pixels = _jpeg_pixels(data) if data[:3] == b"\xff\xd8\xff" else 0
    if pixels > max_pixels:
        raise BadSample("too_many_pixels", f"{pixels} pixels")
    if pixels:  # a JPEG of unknown size goes to Pillow, which checks it
        try:
            raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            return decode_jpeg(raw, mode=ImageReadMode.RGB)
        except RuntimeError:  # CMYK variants and damage: Pillow decides which
            pass
    array = np.array(open_image(data, max_pixels))  # (H, W, 3)
    return torch.from_numpy(array).permute(2, 0, 1)
