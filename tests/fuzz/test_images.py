"""Image files: (3, H, W) uint8, or a bad sample with its cause."""

from __future__ import annotations

import io
import struct

import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clipkit.data.decode import decode_image, image_size
from tests.fixtures_shards import noise_bytes
from tests.fuzz.bounds import bounds, cases, some_or_many
from tests.fuzz.mutations import damaged

SIDE, PIXELS, BYTES = 24, 4096, 20_000


def encoded(kind: str, mode: str = "RGB", **options: object) -> bytes:
    """A picture of noise in a format and a mode."""
    image = Image.open(io.BytesIO(noise_bytes(3, side=SIDE))).convert("L" if ";" in mode else mode)
    image = image.convert(mode)
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


WHOLE = [
    encoded("JPEG"), encoded("JPEG", progressive=True), encoded("JPEG", "L"),
    encoded("JPEG", "CMYK"),
    encoded("PNG"), encoded("PNG", "P"), encoded("PNG", "RGBA"), encoded("PNG", "1"),
    encoded("PNG", "I;16"), encoded("WEBP"), encoded("WEBP", lossless=True),
    encoded("WEBP", "RGBA"),
    encoded("PNG", save_all=True, append_images=[Image.new("RGB", (SIDE, SIDE))]),
]  # fmt: skip
OTHERS = [encoded(kind) for kind in ("GIF", "BMP", "TIFF", "PPM", "ICO", "TGA", "PCX")]
BOMB = bytearray(encoded("PNG"))
BOMB[16:24] = struct.pack(">II", 2**31 - 1, 2**31 - 1)
ORIENTATION = Image.Exif()
ORIENTATION[0x0112] = 6
WHOLE.append(encoded("JPEG", exif=ORIENTATION))


@some_or_many(300, 8000)
def test_images(tmp_path, count: int) -> None:  # type: ignore[no-untyped-def]
    files = st.sampled_from(WHOLE).flatmap(damaged) | st.sampled_from([*OTHERS, bytes(BOMB), b""])
    joined = st.builds(bytes.__add__, st.sampled_from(WHOLE), st.sampled_from(WHOLE))
    scaled = st.sampled_from([None, (4, 4), (1, 1), (SIDE, SIDE)])

    @cases(count)
    @given(files | joined | st.binary(max_size=64), scaled, st.sampled_from(["ignore", "apply"]))
    def one(data: bytes, at_least: tuple[int, int] | None, exif: str) -> None:
        with bounds(tmp_path):
            image_size(data, exif)
            image = decode_image(
                data, max_pixels=PIXELS, max_bytes=BYTES, exif=exif, at_least=at_least
            )
            assert image.dtype == torch.uint8 and image.shape[0] == 3
            assert 0 < image.shape[1] * image.shape[2] <= PIXELS

    one()
