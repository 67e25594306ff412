"""Each fault of a sample has its cause, each oddity its note; training agrees on what is bad."""

from __future__ import annotations

import io
import json
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from clipkit.data.bad_samples import BadSample
from clipkit.data.shard_reader import RawSample
from data_tools.validate.sample import Rules, judge
from tests.fixtures_shards import noise_bytes, repeated_scans, small_reader

RULES = Rules(max_pixels=10_000, max_bytes=40_000)


def encoded(
    mode: str = "RGB", kind: str = "PNG", size: tuple[int, int] = (24, 16), **save
) -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, 90 if mode in ("L", "P", "I;16") else None or 0).save(out, kind, **save)
    return out.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds almost nothing: a bomb."""

    def chunk(name: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(20_000_000))  # 20 kB that stand for 20 MB
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def png16(mode: str) -> bytes:
    if mode == "gray":
        pixels = np.full((16, 24), 30_000, dtype=np.uint16)
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "PNG")
        return out.getvalue()
    rows = b"".join(b"\0" + struct.pack(">3H", 1000, 30_000, 60_000) * 24 for _ in range(16))
    head = struct.pack(">IIBBBBB", 24, 16, 16, 2, 0, 0, 0)
    out = b"\x89PNG\r\n\x1a\n"
    for name, data in ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        check = struct.pack(">I", zlib.crc32(name + data))
        out += struct.pack(">I", len(data)) + name + data + check
    return out


def exif(orientation: int) -> bytes:
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()


JPEG = noise_bytes(1, "JPEG", 24)
TEXT = {"txt": b"a dog"}


def verdict(members: dict[str, bytes], rules: Rules = RULES, large: tuple[str, ...] = ()) -> str:
    try:
        judge(RawSample(0, "k", dict(members), large), rules)
    except BadSample as error:
        return error.cause
    return ""


def training(members: dict[str, bytes]) -> str:
    reader = small_reader()
    reader.max_pixels, reader.max_bytes = RULES.max_pixels, RULES.max_bytes
    try:
        reader.read(dict(members), 0, np.random.default_rng(0))
    except BadSample as error:
        return error.cause
    return ""


FAULTS = {
    "good": ({"jpg": JPEG, **TEXT}, ""),
    "no image": ({**TEXT}, "no_image"),
    "no caption": ({"jpg": JPEG}, "no_caption"),
    "empty caption": ({"jpg": JPEG, "txt": b" \n"}, "empty_caption"),
    "caption in latin-1": ({"jpg": JPEG, "txt": b"caf\xe9"}, "caption_not_utf8"),
    "long caption": ({"jpg": JPEG, "txt": b"a" * 70_000}, "caption_too_long"),
    "cut": ({"jpg": JPEG[: len(JPEG) // 2], **TEXT}, "unreadable_image"),
    "no end marker": ({"jpg": JPEG[:-2], **TEXT}, "unreadable_image"),
    "html page": ({"jpg": b"<html>404</html>", **TEXT}, "unreadable_image"),
    "empty file": ({"jpg": b"", **TEXT}, "unreadable_image"),
    "gif named jpg": ({"jpg": encoded("P", "GIF"), **TEXT}, "unreadable_image"),
    "tiff named png": ({"png": encoded(kind="TIFF"), **TEXT}, "unreadable_image"),
    "many pixels": ({"png": encoded(size=(200, 100)), **TEXT}, "too_many_pixels"),
    "many bytes": ({"png": noise_bytes(0, "PNG", 120) * 2, **TEXT}, "too_many_bytes"),
    "bomb": ({"png": png_header(9_000, 9_000), **TEXT}, "too_many_pixels"),
    "many scans": ({"jpg": repeated_scans(51), **TEXT}, "too_many_scans"),
    "extreme shape": ({"png": encoded(size=(5000, 1)), **TEXT}, "extreme_shape"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_has_its_cause_and_training_agrees(name: str) -> None:
    members, cause = FAULTS[name]
    assert verdict(members) == cause
    assert training(members) == cause


def test_a_bomb_is_refused_without_decoding() -> None:
    bomb = png_header(2500, 2500)  # 20 kB for 19 MB
    assert len(bomb) < 21_000
    tracemalloc.start()
    assert verdict({"png": bomb, **TEXT}) == "too_many_pixels"
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_a_large_member_of_training_is_a_fault_another_a_note() -> None:
    assert verdict({"txt": b"x"}, large=("jpg",)) == "too_many_bytes"
    assert verdict({"jpg": JPEG}, large=("txt",)) == "too_many_bytes"
    notes = judge(RawSample(3, "k", {"jpg": JPEG, **TEXT}, ("cls",)), RULES)[1]
    assert notes == [(3, "k", "member_too_large", "cls")]


def test_small_images_are_rejected_on_demand() -> None:
    members = {"png": encoded(size=(24, 16)), **TEXT}
    assert verdict(members, Rules(min_side=16)) == ""
    assert verdict(members, Rules(min_side=17)) == "too_small"


ODD = {
    "png named jpg": ("jpg", encoded(), ["format_mismatch"]),
    "jpeg named png": ("png", JPEG, ["format_mismatch"]),
    "16-bit gray": ("png", png16("gray"), ["16_bit"]),
    "16-bit colour": ("png", png16("rgb"), ["16_bit"]),
    "cmyk": ("jpg", encoded("CMYK", "JPEG"), ["cmyk"]),
    "palette": ("png", encoded("P"), ["palette"]),
    "bilevel": ("png", encoded("1"), ["bilevel"]),
    "alpha": ("png", encoded("RGBA"), ["alpha"]),
    "turned jpeg": ("jpg", encoded("RGB", "JPEG", exif=exif(6)), ["exif_orientation"]),
    "turned png": ("png", encoded("RGB", "PNG", exif=exif(8)), ["exif_orientation"]),
    "upright": ("jpg", encoded("RGB", "JPEG", exif=exif(1)), []),
    "gray": ("jpg", encoded("L", "JPEG"), []),
    "progressive": ("jpeg", encoded("RGB", "JPEG", progressive=True), []),
    "webp": ("webp", encoded("RGB", "WEBP"), []),
    "animated": (
        "webp",
        encoded("RGB", "WEBP", save_all=True, append_images=[Image.new("RGB", (24, 16), 255)]),
        ["animated"],
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_each_oddity_is_noted_and_usable(name: str) -> None:
    extension, data, kinds = ODD[name]
    members, notes = judge(RawSample(5, "key", {extension: data, **TEXT}), RULES)
    assert members == {extension: data, **TEXT}
    assert [note.kind for note in notes] == kinds
    assert all((note.row, note.key) == (5, "key") for note in notes)
    assert training({extension: data, **TEXT}) == ""


def test_strict_rejects_jpegs_that_decode_with_warnings() -> None:
    pytest.importorskip("simplejpeg", reason="simplejpeg is not installed")
    jpeg = noise_bytes(1, "JPEG", 64)
    found = set()
    for position in range(len(jpeg) // 2, len(jpeg) // 2 + 20):
        members = {"jpg": jpeg[:position] + b"\x55" + jpeg[position + 1 :], **TEXT}
        found.add((verdict(members), verdict(members, Rules(strict=True))))
    assert ("", "corrupt_jpeg") in found
    assert all(strict == plain or plain == "" for plain, strict in found)
    assert verdict({"jpg": jpeg, **TEXT}, Rules(strict=True)) == ""
    assert verdict({"png": encoded(), **TEXT}, Rules(strict=True)) == ""


def test_captions_may_lie_in_json() -> None:
    rules = Rules(caption_keys=("json.text.en", "txt"))
    good = {"jpg": JPEG, "json": json.dumps({"text": {"en": "a dog"}}).encode()}
    assert verdict(good, rules) == "" and verdict(good) == "no_caption"
    assert verdict({"jpg": JPEG, "json": b'{"text": 1}'}, rules) == "no_caption"


@pytest.mark.parametrize("data", [b"{", b"[1]", b'"x"', b"[" * 100_000, b"\xff", b" " * 1_000_001])
def test_json_that_training_cannot_read_is_noted(data: bytes) -> None:
    members = {"jpg": JPEG, "json": data, **TEXT}
    notes = judge(RawSample(0, "k", members), Rules(max_bytes=2_000_000))[1]
    assert [note.kind for note in notes] == ["json_unreadable"]


def test_a_second_image_is_noted_and_not_kept() -> None:
    members, notes = judge(RawSample(0, "k", {"jpg": JPEG, "png": b"?", **TEXT}), RULES)
    assert members == {"jpg": JPEG, **TEXT}
    assert [(note.kind, note.detail) for note in notes] == [("second_image", "png")]
    members = {"webp": b"?", "jpeg": b"?", "png": b"?", "jpg": JPEG, **TEXT}
    notes = judge(RawSample(0, "k", members), RULES)[1]
    assert [note.detail for note in notes] == ["jpeg", "png", "webp"], "the same order each time"


def test_nothing_else_is_read() -> None:
    assert set(RULES.allowed) == {"jpg", "jpeg", "png", "webp", "txt", "json", "cls"}
    assert Rules(caption_keys=("json.a", "2.txt")).training[-2:] == ("json", "2.txt")
