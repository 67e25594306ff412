"""From shards to a keep-list: planted repeats are found, and kinds compose by reshard."""

import io
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image

from clipkit.data.tar_index import build_index
from clipkit.errors import DataError
from clipkit.eval.embedding_folder import FORMAT, features_path, metadata_path
from data_tools.build.plan import put_json
from data_tools.dedup.run import dedup_exact, dedup_perceptual, dedup_semantic, dedup_text
from data_tools.reshard.run import reshard
from data_tools.tables import read_keep, read_table, write_table
from tests.fixtures_shards import noise_bytes, write_tar

FLOWER = Image.fromarray(load_sample_image("flower.jpg"))
CHINA = Image.fromarray(load_sample_image("china.jpg"))


def saved(image: Image.Image, kind: str = "PNG", **options: int) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def pictures() -> dict[str, bytes]:
    """Two photographs, and what people do to one of them."""
    return {
        "a0": saved(FLOWER, "JPEG", quality=95),
        "a1": saved(CHINA, "JPEG", quality=95),
        "a2": saved(FLOWER, "JPEG", quality=95),
        "b0": saved(FLOWER, "JPEG", quality=40),
        "b1": saved(FLOWER.resize((200, 133))),
        "b2": saved(ImageOps.mirror(FLOWER)),
        "b3": saved(Image.open(io.BytesIO(saved(FLOWER, "JPEG", quality=95)))),
    }


CAPTIONS = dict(
    zip(pictures(), ["A flower", "temple", "a  flower!", "the", "a flowers", "A flowers.", "y"])
)


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    images = pictures()
    paths = []
    for shard in "ab":
        members = []
        for key in sorted(k for k in images if k[0] == shard):
            kind = "jpg" if images[key][:2] == b"\xff\xd8" else "png"
            members += [(f"{key}.{kind}", images[key]), (f"{key}.txt", CAPTIONS[key].encode())]
            members += [(f"{key}.json", b'{"volume": "%s"}' % shard.encode())]
        paths.append(str(write_tar(tmp_path / "in" / f"{shard}.tar", members)))
    return paths


def kept(out: Path) -> list[str]:
    return [key for _, keys in read_keep(out / "keep.parquet").values() for key in keys]


def repeats(out: Path) -> dict[str, str]:
    table = read_table(out / "duplicates.parquet")
    return dict(zip(table["key"].to_pylist(), table["of_key"].to_pylist()))


def test_exact(tmp_path: Path, shards: list[str]) -> None:
    facts = dedup_exact(shards, tmp_path / "a")
    assert repeats(tmp_path / "a") == {"a2": "a0"} and facts["counts"]["duplicates"] == 1
    dedup_exact(shards, tmp_path / "b", pixels=True)
    assert repeats(tmp_path / "b") == {"a2": "a0", "b3": "a0"}
    assert kept(tmp_path / "b") == ["a0", "a1", "b0", "b1", "b2"]
    dedup_exact(shards[::-1], tmp_path / "c", pixels=True)  # the first in shard order stays
    assert repeats(tmp_path / "c") == {"a0": "b3", "a2": "b3"}


@pytest.mark.parametrize("name", ["dhash", "phash"])
def test_perceptual(tmp_path: Path, shards: list[str], name: str) -> None:
    same = {"a2": "a0", "b0": "a0", "b1": "a0", "b3": "a0"}
    dedup_perceptual(shards, tmp_path / "a", hash_name=name)
    assert repeats(tmp_path / "a") == same
    dedup_perceptual(shards, tmp_path / "b", hash_name=name, mirrored=True)
    assert repeats(tmp_path / "b") == {**same, "b2": "a0"}
    for group in ("shard", "json:volume"):
        out = tmp_path / group.replace(":", "-")
        facts = dedup_perceptual(shards, out, hash_name=name, group_by=group)
        assert repeats(out) == {"a2": "a0", "b1": "b0", "b3": "b0"}
        assert facts["counts"]["groups"] == 2
    dedup_perceptual(shards, tmp_path / "c", hash_name=name, threshold=64, group_by="shard")
    assert kept(tmp_path / "c") == ["a0", "b0"]
    dedup_perceptual(shards, tmp_path / "d", hash_name=name, threshold=-1)
    assert len(kept(tmp_path / "d")) == 7
    with pytest.raises(DataError, match="--group-by jsn:volume"):
        dedup_perceptual(shards, tmp_path / "e", group_by="jsn:volume")


def test_text(tmp_path: Path, shards: list[str]) -> None:
    dedup_text(shards, tmp_path / "a")
    assert repeats(tmp_path / "a") == {"a2": "a0", "b2": "b1"}
    dedup_text(shards, tmp_path / "b", threshold=0.8)
    assert repeats(tmp_path / "b") == {"a2": "a0", "b1": "a0", "b2": "a0"}
    assert read_table(tmp_path / "b/duplicates.parquet")["distance"].to_pylist()[0] == 0
    with pytest.raises(DataError, match="--threshold 0"):
        dedup_text(shards, tmp_path / "c", threshold=0)


def test_kinds_compose_and_repeat_to_the_byte(tmp_path: Path, shards: list[str]) -> None:
    dedup_exact(shards, tmp_path / "a")
    dedup_perceptual(shards, tmp_path / "b", mirrored=True)
    again = tmp_path / "b" / "keep.parquet"
    before = again.read_bytes()
    assert dedup_perceptual(shards, tmp_path / "b", mirrored=True)["done_before"] == 2
    assert again.read_bytes() == before
    reshard(shards, tmp_path / "out", keeps=[tmp_path / "a/keep.parquet", again])
    index = build_index(str(tmp_path / "out" / "shard-00000.tar"))
    assert list(index.keys) == ["a0", "a1"]


def test_shards_of_like_names_are_all_compared(tmp_path: Path) -> None:
    names = ["a/b.tar", "a__b.tar", "c", "c.tar"]
    paths = [
        str(write_tar(tmp_path / "in" / name, [(f"k{i}.png", noise_bytes(i))]))
        for i, name in enumerate(names)
    ]
    dedup_exact(paths, tmp_path / "out")
    assert kept(tmp_path / "out") == ["k0", "k1", "k2", "k3"]


def test_a_failed_shard_ends_in_an_error_and_a_dry_run_in_nothing(
    tmp_path: Path, shards: list[str]
) -> None:
    assert dedup_exact(shards, tmp_path / "dry", dry_run=True) == {}
    assert not (tmp_path / "dry").exists()
    with pytest.raises(DataError, match="1 of 3 shards failed: .*none.tar"):
        dedup_exact([*shards, str(tmp_path / "in/none.tar")], tmp_path / "a")
    assert not (tmp_path / "a" / "keep.parquet").exists()


def embedded(tmp_path: Path) -> Path:
    """Ten rows: two repeat the first, and the last two have no caption."""
    root, rows = tmp_path / "emb", np.eye(10, 12, dtype=np.float16)
    rows[3], rows[7, 0] = rows[0], 1
    rows[7, 7] = 0.1
    for side in ("image", "text"):
        features_path(root, side, 0).parent.mkdir(parents=True)
        np.save(features_path(root, side, 0), rows if side == "image" else rows[[*range(8), 0, 0]])
    paths = [f"/d/{name}.tar" for name in "ab"]
    columns = {"key": [f"k{i}" for i in range(10)], "caption": ["c"] * 10}
    columns |= {"has_caption": [True] * 8 + [False] * 2}
    columns |= {"shard": [paths[i // 5] for i in range(10)]}
    columns["sample"] = pyarrow.array([i % 5 for i in range(10)], pyarrow.int64())
    write_table(metadata_path(root, 0), columns)
    facts = {"format": FORMAT, "checkpoint": "c", "weights_hash": "w", "precision": "fp32"}
    facts |= {"key": "k", "dim": 12, "rows": 10, "text": True, "file_rows": [10]}
    put_json(root / "index.json", {**facts, "shards": [{"path": path} for path in paths]})
    return root


def test_semantic(tmp_path: Path) -> None:
    root = embedded(tmp_path)
    facts = dedup_semantic(root, tmp_path / "a", clusters=1)
    assert facts["counts"]["kept"] == 8 and (facts["eps"], facts["clusters"]) == (0.05, 1)
    found = read_table(tmp_path / "a/duplicates.parquet").to_pylist()
    assert {row["key"] for row in found} < {"k0", "k3", "k7"} and len(found) == 2
    assert {row["shard"] for row in found} <= {"a.tar", "b.tar"}
    facts = dedup_semantic(root, tmp_path / "b", clusters=1, side="text", eps=1e-3)
    assert facts["counts"]["duplicates"] == 1  # those without a caption are not compared
    assert dedup_semantic(root, tmp_path / "c", dry_run=True) == {}
    assert not (tmp_path / "c").exists()
