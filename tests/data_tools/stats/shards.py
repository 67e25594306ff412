"""Shards that hold one of everything that statistics tell apart."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from PIL import Image

from tests.fixtures_shards import image_bytes, write_tar

EVIL = '"><script>alert(1)</script>'


def encoded(size: tuple[int, int], kind: str, mode: str = "RGB", **options) -> bytes:
    """A flat image."""
    out = io.BytesIO()
    Image.new(mode, size).save(out, kind, **options)
    return out.getvalue()


def oriented(value: int, kind: str) -> bytes:
    """An image with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = value
    return encoded((12, 6), kind, exif=exif)


def zoo() -> list[tuple[str, bytes]]:
    """Members of shard 0: nine samples, their errors in ERRORS."""
    same = image_bytes((1, 2, 3))
    return [
        ("a.jpg", oriented(6, "JPEG")), ("a.txt", b"red apple"), ("a.json", b"{}"),
        ("b.png", same), ("b.txt", b" red  apple \n"),
        ("c.png", same), ("c.txt", b"red apple"),
        ("d.webp", oriented(3, "WEBP")), ("d.txt", EVIL.encode()),
        ("e.png", b"\x89PNG damaged"), ("e.txt", b"no picture"),
        ("f.txt", b"alone"),
        ("g.png", encoded((4, 2), "PNG", "L")),
        ("h.png", image_bytes()), ("h.txt", b"\xff latin"),
        ("i.gif", encoded((5, 5), "GIF")), ("i.jpg", encoded((5, 5), "GIF")), ("i.txt", b"  "),
    ]  # fmt: skip


ERRORS = {
    "e": "unreadable_image", "f": "no_image", "g": "no_caption", "h": "caption_not_utf8",
    "i": "empty_caption",
}  # fmt: skip


def write_zoo(root: Path) -> list[str]:
    """The zoo, a shard that is cut short, and one that is no tar."""
    write_tar(root / "0.tar", zoo())
    pairs = [(f"z{i}.{e}", d) for i in range(4) for e, d in (("png", image_bytes()), ("txt", b"x"))]
    write_tar(root / "1.tar", pairs, tarfile.USTAR_FORMAT)
    cut = root / "1.tar"
    cut.write_bytes(cut.read_bytes()[:4000])
    (root / "2.tar").write_bytes(b"<html></html>" * 100)
    return [str(root / f"{i}.tar") for i in range(3)]
