"""A shard's table has a line a sample, with the error that training would count."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest

from clipkit.data.bad_samples import BadSample
from clipkit.data.samples import SampleReader
from clipkit.errors import DataError
from data_tools.stats.tables import SCHEMA, write_shard_table
from tests.data_tools.stats.shards import ERRORS, EVIL, write_zoo, zoo
from tests.fixtures_shards import noise_bytes, small_reader, write_tar


def lines(root: Path, shard: str, decode: bool = False) -> dict[str, dict]:
    result = write_shard_table(shard, root / "out", str(root), decode)
    table = parquet.read_table(root / "out" / str(result["outputs"]))
    assert table.schema.equals(SCHEMA) and len(table) == result["samples"]
    found = {line["key"]: line for line in table.to_pylist()}
    assert sum(line["error"] is not None for line in found.values()) == result["errors"]
    return found


def test_a_line_a_sample(tmp_path: Path) -> None:
    shard = write_zoo(tmp_path / "d")[0]
    found = lines(tmp_path, shard)
    assert list(found) == list("abcdefghi")
    assert {line["shard"] for line in found.values()} == {"d/0.tar"}
    assert [line["row"] for line in found.values()] == list(range(9))
    assert {k: line["error"] for k, line in found.items() if line["error"]} == ERRORS
    a, d = found["a"], found["d"]
    assert (a["members"], a["width"], a["height"], a["exif_orientation"]) == (
        "jpg json txt",
        12,
        6,
        6,
    )
    data = dict(zoo())
    assert a["sha256"] == hashlib.sha256(data["a.jpg"]).hexdigest()
    assert a["image_bytes"] == len(data["a.jpg"])
    assert (d["caption"], d["format"], d["exif_orientation"]) == (EVIL, "WEBP", 3)
    assert found["b"]["caption"] == "red  apple"
    assert (found["b"]["caption_chars"], found["b"]["caption_words"]) == (10, 2)
    assert found["e"]["width"] is None and found["e"]["sha256"] is not None
    assert found["f"]["image_bytes"] is None and found["g"]["caption"] is None
    assert found["g"]["mode"] == "L" and found["h"]["caption"] == "\ufffd latin"


def test_errors_are_those_of_training(tmp_path: Path) -> None:
    found = lines(tmp_path, write_zoo(tmp_path / "d")[0], decode=True)
    reader: SampleReader = small_reader()
    members: dict[str, dict[str, bytes]] = {}
    for name, data in zoo():
        key, _, extension = name.partition(".")
        members.setdefault(key, {})[extension] = data
    for key, line in found.items():
        try:
            reader.read(members[key], 0, np.random.default_rng(0))
            cause = None
        except BadSample as error:
            cause = error.cause
        assert line["error"] == cause, key


def test_damage_behind_the_header_needs_decode(tmp_path: Path) -> None:
    data = noise_bytes(0, side=64)
    members = [("a.png", data[: len(data) // 2]), ("a.txt", b"half")]
    shard = str(write_tar(tmp_path / "0.tar", members))
    assert lines(tmp_path, shard)["a"]["error"] is None
    assert lines(tmp_path, shard, decode=True)["a"]["error"] == "unreadable_image"


def test_damaged_shards(tmp_path: Path) -> None:
    _, cut, html = write_zoo(tmp_path / "d")
    result = write_shard_table(cut, tmp_path / "out", str(tmp_path), False)
    assert 0 < result["samples"] < 4 and "cut short" in str(result["damage"])
    result = write_shard_table(html, tmp_path / "out", str(tmp_path), False)
    assert result["samples"] == 0 and "not a tar" in str(result["damage"])
    with pytest.raises(DataError, match="absent"):
        write_shard_table(str(tmp_path / "absent.tar"), tmp_path / "out", str(tmp_path), False)
