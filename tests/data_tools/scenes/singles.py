"""Shards of single pictures: filled squares of distinct colours, with room around them."""

import io
import json
from pathlib import Path

from PIL import Image

from clipkit.data.shard_writer import write_shard

NAMES = [
    *("ant", "bear", "cat", "dog", "eel", "fox", "goat", "hen", "ibis", "jay"),
    *("kiwi", "lion", "mole", "newt", "owl", "pig", "rat", "seal", "toad", "wolf"),
]


def color_of(name: str) -> tuple[int, int, int]:
    """The colour of a thing's square; dark, unlike every background."""
    number = NAMES.index(name)
    return (number % 3 * 45, number // 3 % 3 * 45, number // 9 * 45)


def single(
    caption: str, color: tuple[int, int, int] = (0, 0, 0), category: str = "Objects"
) -> dict[str, bytes]:
    """Members of a sample."""
    picture = Image.new("RGBA", (24, 24), (0, 0, 0, 0))
    picture.paste((*color, 255), (4, 4, 20, 20))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    meta = json.dumps({"category": category}).encode()
    return {"png": buffer.getvalue(), "txt": caption.encode(), "json": meta}


def write_singles(path: Path) -> str:
    """One shard of all NAMES."""
    write_shard(path, ((name, single(name, color_of(name))) for name in NAMES))
    return str(path)
