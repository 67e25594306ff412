"""One sample: can training use it, and what is odd about it all the same."""

from __future__ import annotations

import io
import json
import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from clipkit.data.bad_samples import BadSample
from clipkit.data.captions import CaptionRule
from clipkit.data.shard_reader import RawSample

_FORMATS = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}
_MODES = {"CMYK": "cmyk", "P": "palette", "1": "bilevel", "RGBA": "alpha", "LA": "alpha"}
PLAIN = frozenset((*_MODES.values(), "animated", "exif_orientation"))  # counted, without a row
_ORIENTATION = 0x0112
_MAX_META = 1_000_000  # bytes; training parses no larger json member


class Note(NamedTuple):
    """Something odd that training can live with."""

    row: int
    key: str
    kind: str
    detail: str = ""


@dataclass(frozen=True)
class Rules:
    """What is asked of a sample.

    Attributes:
        image_keys, caption_keys: As in training's data section.
        keep: Further members that a repaired sample has.
        max_pixels, max_bytes: Limits on an image, before it is decoded.
        min_side: Pixels of the shorter side.
        strict: Reject also JPEGs that libjpeg warns of.
    """

    image_keys: tuple[str, ...] = ("jpg", "jpeg", "png", "webp")
    caption_keys: tuple[str, ...] = ("txt",)
    keep: tuple[str, ...] = ("json", "cls")
    max_pixels: int = 50_000_000
    max_bytes: int = 50_000_000
    min_side: int = 1
    strict: bool = False

    @property
    def training(self) -> tuple[str, ...]:
        """Members that training reads."""
        return (*self.image_keys, *CaptionRule(self.caption_keys).members)

    @property
    def allowed(self) -> tuple[str, ...]:
        """Members that are read, or kept by repair; no other is ever opened."""
        return tuple(dict.fromkeys((*self.training, *self.keep)))


def judge(sample: RawSample, rules: Rules) -> tuple[dict[str, bytes], list[Note]]:
    """Members that a clean copy keeps, and notes.

    Raises:
        BadSample: Training cannot use it, or it breaks a rule.
    """
    members, notes = dict(sample.members), []
    for extension in sample.too_large:
        if extension in rules.training:
            raise BadSample("too_many_bytes", f"{extension}: over {rules.max_bytes} bytes")
        notes.append(Note(sample.row, sample.key, "member_too_large", extension))
    image_key = next((key for key in rules.image_keys if key in members), None)
    if image_key is None:
        raise BadSample("no_image")
    for other in sorted(set(rules.image_keys) & set(members) - {image_key}):  # nobody looks at them
        notes.append(Note(sample.row, sample.key, "second_image", other))
        del members[other]
    meta = _meta(members.get("json"))
    if meta is None:
        notes.append(Note(sample.row, sample.key, "json_unreadable"))
    CaptionRule(rules.caption_keys).pick(members, meta or {}, np.random.default_rng)
    for kind, detail in _judge_image(members[image_key], image_key, rules):
        notes.append(Note(sample.row, sample.key, kind, detail))
    return members, notes


def _meta(data: bytes | None) -> dict[str, Any] | None:
    """The json member; {} if there is none, None if training cannot read it."""
    if data is None:
        return {}
    try:
        meta = json.loads(data) if len(data) <= _MAX_META else None
    except (ValueError, RecursionError):
        return None
    return meta if isinstance(meta, dict) else None


def _judge_image(data: bytes, extension: str, rules: Rules) -> list[tuple[str, str]]:
    from clipkit.data.decode import decode_image  # brings torch, for the workers alone

    pixels = decode_image(data, max_pixels=rules.max_pixels, max_bytes=rules.max_bytes)
    height, width = pixels.shape[1:]
    if min(height, width) < rules.min_side:
        raise BadSample("too_small", f"{width} x {height} pixels")
    if rules.strict and data[:2] == b"\xff\xd8":
        _check_jpeg(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Not decoded again: the header is read.
        with Image.open(io.BytesIO(data), formats=tuple(set(_FORMATS.values()))) as image:
            return _oddities(image, data, extension)


def _check_jpeg(data: bytes) -> None:
    import simplejpeg

    try:
        simplejpeg.decode_jpeg(data, strict=True)
    except ValueError as error:
        raise BadSample("corrupt_jpeg", str(error)) from None


def _oddities(image: Image.Image, data: bytes, extension: str) -> list[tuple[str, str]]:
    """(kind, detail) of each thing that another reader may take otherwise."""
    found = []
    by_name = _FORMATS.get(extension.rpartition(".")[2])
    if by_name and by_name != image.format:
        found.append(("format_mismatch", f"{image.format} named .{extension}"))
    # Pillow opens 16-bit colour as 8 bits: byte 24 of a PNG is its bit depth.
    if image.mode.startswith("I") or (image.format == "PNG" and data[24] == 16):
        found.append(("16_bit", image.mode))
    if image.mode in _MODES:
        found.append((_MODES[image.mode], image.mode))
    if getattr(image, "n_frames", 1) > 1:
        found.append(("animated", f"{getattr(image, 'n_frames', 1)} frames"))
    # A PNG's getexif() decodes the image where there is no EXIF block in front.
    if "exif" in image.info:
        orientation = image.getexif().get(_ORIENTATION, 1)
        if orientation != 1:
            found.append(("exif_orientation", str(orientation)))
    return found
