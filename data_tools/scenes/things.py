"""Things to compose scenes of: pictures of one thing with a one-word name, from tar shards."""

from __future__ import annotations

import io
import json
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image, UnidentifiedImageError

from clipkit.data.shard_reader import RawSample, iter_samples
from clipkit.data.shards import expand_shards
from clipkit.data.tar_index import load_index
from clipkit.errors import DataError

CATEGORIES = (
    "Animals & Nature",
    "Food & Drink",
    "Objects",
    "Travel & Places",
    "Activities",
)
_NAME = re.compile("[a-z]{2,}")
_NO_NOUNS = frozenset({"camping", "cooking", "foggy", "locked", "unlocked"})
_IMAGES = ("png", "webp")  # what can be transparent
_MAX_SIDE = 4096


def read_things(shards: Sequence[str], categories: Sequence[str]) -> dict[str, Image.Image]:
    """Pictures that can stand in a scene: name -> RGBA, cut to what is not transparent.

    A name is the caption, if that is a noun of one word in small letters; where its plural is a
    name too, the plural is left out.

    Args:
        shards: Tars of single pictures (png or webp) with txt and json members, or patterns.
        categories: Values of the json field "category" that are things.

    Returns:
        Sorted by name.

    Raises:
        DataError: No such shard, none with a thing in it, or a picture is damaged.
    """
    things: dict[str, Image.Image] = {}
    for shard in expand_shards(shards, "SHARDS"):
        for name, sample in _named(shard, categories):
            if name in things:
                raise DataError(f"{shard}: two pictures are called '{name}'; leave one out")
            things[name] = _picture(sample, shard)
    if not things:
        raise DataError(
            f"{', '.join(shards)}: no transparent picture with a caption of one word and a json "
            f"'category' of {', '.join(categories)}; name others by --category"
        )
    plurals = {f"{name}s" for name in things}
    return {name: things[name] for name in sorted(things) if name not in plurals}


def choose_kinds(names: Sequence[str], count: int, seed: int) -> list[str]:
    """Draw `count` of the names; sorted.

    Raises:
        DataError: There are fewer.
    """
    if count > len(names):
        raise DataError(
            f"--kinds {count}: the shards hold {len(names)} kinds of things; ask for less"
        )
    return sorted(random.Random(f"kinds {seed}").sample(sorted(names), count))


def _named(shard: str, categories: Sequence[str]) -> Iterator[tuple[str, RawSample]]:
    """Samples that are things, with their names."""
    for sample in iter_samples(load_index(shard), (*_IMAGES, "txt", "json")):
        name = sample.members.get("txt", b"").decode("utf-8", "replace").strip()
        if not _NAME.fullmatch(name) or name in _NO_NOUNS:
            continue
        if _category(sample.members.get("json", b"")) in categories:
            yield name, sample


def _category(data: bytes) -> Any:
    try:
        meta = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return meta.get("category") if isinstance(meta, dict) else None


def _picture(sample: RawSample, shard: str) -> Image.Image:
    data = next((sample.members[e] for e in _IMAGES if e in sample.members), b"")
    try:
        opened = Image.open(io.BytesIO(data), formats=("PNG", "WEBP"))
        if max(opened.size) > _MAX_SIDE:
            raise DataError(f"{shard}: sample '{sample.key}' is larger than {_MAX_SIDE} pixels")
        picture = opened.convert("RGBA")
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise DataError(f"{shard}: sample '{sample.key}' is no png or webp: {error}") from None
    box = picture.getchannel("A").getbbox()
    if box is None:
        raise DataError(f"{shard}: sample '{sample.key}' is wholly transparent; remove it")
    return picture.crop(box)
