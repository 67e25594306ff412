"""The table of one shard: hashes against their definitions, null where there is nothing to hash."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from data_tools.dedup.hashes import hash_shard
from data_tools.tables import read_table
from tests.fixtures_shards import noise_bytes, write_tar

PNG, JPEG = noise_bytes(0, side=40), noise_bytes(1, "JPEG", 40)
MEMBERS = [
    ("a.png", PNG), ("a.txt", b" A  Cat! "), ("a.json", b'{"volume": "v1"}'),
    ("b.jpg", JPEG), ("b.txt", b"\xff"), ("b.json", b'{"volume": 7}'),
    ("c.png", b"junk"), ("c.txt", b""), ("c.json", b"{"),
    ("d.txt", b"no picture"),
]  # fmt: skip


def hashed(tmp_path: Path, kind: str, **options: object) -> tuple[dict, dict[str, list]]:
    shard = write_tar(tmp_path / "in" / "x" / "0.tar", MEMBERS)
    out = tmp_path / "out"
    facts = hash_shard(str(shard), out, root=str(tmp_path / "in"), kind=kind, options=options)
    assert facts["outputs"] == "tables/x%2F0.tar.parquet"
    found = read_table(out / facts["outputs"]).to_pydict()
    assert found["key"] == list("abcd") and found["row"] == [0, 1, 2, 3]
    return facts, found


def pixels(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def test_bytes_and_pixels(tmp_path: Path) -> None:
    facts, found = hashed(tmp_path, "bytes")
    digests = [hashlib.sha256(data).hexdigest() for data in (PNG, JPEG, b"junk")]
    assert found["sha256"] == [*digests, None] and facts["unhashed"] == 1
    facts, found = hashed(tmp_path, "pixels")
    assert found["sha256"][2:] == [None, None] and facts["unhashed"] == 2
    expected = hashlib.sha256(b"40 40 " + pixels(PNG).tobytes()).hexdigest()
    assert found["sha256"][0] == expected


@pytest.mark.parametrize("mirrored", [False, True])
def test_dhash_compares_each_pixel_with_its_right_neighbour(tmp_path: Path, mirrored: bool) -> None:
    _, found = hashed(tmp_path, "perceptual", hash="dhash", mirrored=mirrored)

    def dhash(image: Image.Image) -> int:
        grey = image.convert("L").resize((9, 8), Image.Resampling.LANCZOS)
        values = np.asarray(grey).astype(int)
        bits = (values[:, 1:] > values[:, :-1]).ravel()
        return int("".join("01"[bit] for bit in bits.astype(int)), 2)

    assert found["hash"] == [dhash(pixels(PNG)), dhash(pixels(JPEG)), None, None]
    flipped = dhash(ImageOps.mirror(pixels(PNG))) if mirrored else None
    assert found["mirrored"][0] == flipped


def test_phash_is_another_hash(tmp_path: Path) -> None:
    _, one = hashed(tmp_path, "perceptual", hash="phash", mirrored=False)
    _, two = hashed(tmp_path, "perceptual", hash="dhash", mirrored=False)
    assert one["hash"][0] != two["hash"][0] and one["hash"][2] is None


def test_texts_and_groups(tmp_path: Path) -> None:
    facts, found = hashed(tmp_path, "text", near=False, group_field="volume")
    assert found["text"] == ["a cat", None, None, "no picture"] and facts["unhashed"] == 2
    assert found["signature"] == [None] * 4
    assert found["group"] == ["v1", "7", None, None]
    _, found = hashed(tmp_path, "text", near=True)
    assert found["signature"][0] and found["signature"][1] is None
    assert found["group"] == [None] * 4
