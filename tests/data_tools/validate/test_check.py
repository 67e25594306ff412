"""A shard's rejects, notes and clean copy: the fault table, and what is kept."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest
import webdataset
from PIL import Image

from clipkit.data.tar_index import load_index
from data_tools.tables import read_table
from data_tools.validate.check import check_shard
from tests.fixtures_shards import noise_bytes, write_tar

MARK = 10 * 1024  # tarfile pads to records of 20 blocks


def members(count: int = 6) -> list[tuple[str, bytes]]:
    out = []
    for i in range(count):
        out += [(f"{i}.jpg", noise_bytes(i, "JPEG", 24)), (f"{i}.txt", f"caption {i}".encode())]
    return out


def check(shard: Path, out: Path, repair: Path | None = None, **rules: Any) -> dict[str, Any]:
    return check_shard(
        str(shard), out, root=str(shard.parent), rules=rules, repair=str(repair or "")
    )


def rows(out: Path, table: str) -> list[tuple[int, str, str]]:
    found = read_table(out / table).to_pydict()
    return list(zip(found["row"], found["key"], found["cause"]))


def header(shard: Path, name: str) -> int:
    return shard.read_bytes().index(name.encode() + b"\0")


def flip(shard: Path, position: int) -> None:
    data = bytearray(shard.read_bytes())
    data[position] ^= 0xFF
    shard.write_bytes(data)


def test_a_clean_shard(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", members())
    found = check(shard, tmp_path / "out")
    assert (found["samples"], found["good"], found["rejects"], found["notes"]) == (6, 6, {}, {})
    assert (found["damage"], found["missing"], found["repaired"]) == ("", 0, "")
    assert found["outputs"] == ["rejects/a.tar.parquet", "problems/a.tar.parquet"]
    assert rows(tmp_path / "out", "rejects") == rows(tmp_path / "out", "problems") == []


def truncate(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[: header(shard, "3.jpg") + 700])


def cut_at_a_sample(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[: header(shard, "4.jpg")])


def flip_header(shard: Path) -> None:
    flip(shard, header(shard, "2.txt") + 20)


def flip_pixels(shard: Path) -> None:
    position = header(shard, "2.jpg") + 512
    data = bytearray(shard.read_bytes())
    data[position : position + 2] = b"xx"
    shard.write_bytes(data)


def no_end(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes().rstrip(b"\0") + bytes(512))


DAMAGES = {  # damage -> (its function, samples with an index from before it, usable, notes)
    "truncated in a jpg": (truncate, 3, 3, {"damaged": 1, "missing_samples": 1}),
    "cut at a sample": (cut_at_a_sample, 4, 4, {"no_end_mark": 1, "missing_samples": 1}),
    "header flipped": (flip_header, 5, 5, {"damaged": 1, "missing_samples": 1, "torn_sample": 1}),
    "image flipped": (flip_pixels, 6, 5, {}),
    "empty": (lambda shard: shard.write_bytes(b""), 0, 0, {"damaged": 1, "missing_samples": 1}),
    "html": (
        lambda shard: shard.write_bytes(b"<html>" * 500), 0, 0,
        {"damaged": 1, "missing_samples": 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_the_fault_table(tmp_path: Path, name: str) -> None:
    damage, samples, usable, notes = DAMAGES[name]
    shard = write_tar(tmp_path / "a.tar", members())
    load_index(str(shard))  # from before: what is lost is known
    damage(shard)
    os.utime(shard, ns=(5, 5))
    found = check(shard, tmp_path / "out", tmp_path / "clean")
    assert (found["samples"], found["good"], found["missing"]) == (samples, usable, 6 - samples)
    assert found["notes"] == notes
    assert sum(found["rejects"].values()) == samples - usable
    copy = tmp_path / "clean" / "a.tar"
    assert copy.exists() == bool(usable) == bool(found["repaired"])
    if usable:
        again = check(copy, tmp_path / "again")
        assert (again["good"], again["samples"]) == (usable, usable)
        assert again["notes"] == again["rejects"] == {}


def test_a_missing_end_mark_alone_loses_nothing(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", members())
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data.rstrip(b"\0")) // 512 * 512 + 512])
    found = check(shard, tmp_path / "out")
    assert (found["good"], found["damage"], found["missing"]) == (6, "", 0)
    assert found["notes"] == {"no_end_mark": 1}


def test_damage_behind_the_index_costs_nothing_and_is_told(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", members())
    load_index(str(shard))
    time = shard.stat().st_mtime_ns
    flip_header(shard)
    os.utime(shard, ns=(time, time))
    found = check(shard, tmp_path / "out", tmp_path / "clean")
    assert (found["good"], found["missing"]) == (6, 0) and found["damage"]
    assert found["notes"] == {"damaged": 1, "known_by_index_only": 1}
    assert check(tmp_path / "clean" / "a.tar", tmp_path / "again")["good"] == 6


def evil() -> list[tuple[str, bytes]]:
    """Good samples 0 and 1, and one bad one of each kind."""
    jpg, text = noise_bytes(0, "JPEG", 24), b"a dog"
    out = [("0.jpg", jpg), ("0.txt", text), ("0.pyd", b"import os"), ("0.pth", b"\x80\x04.")]
    out += [("1.jpg", jpg), ("1.txt", text), ("1.cls", b"3"), ("1.exe", b"MZ")]
    out += [("2.txt", text), ("3.jpg", jpg), ("4.jpg", jpg), ("4.txt", b"\xff")]
    out += [("../5.jpg", jpg), ("../5.txt", text), ("6.jpg", jpg[:60]), ("6.txt", text)]
    out += [("0.jpg", jpg), ("0.txt", b"the same key"), ("7.jpg", b"GIF89a"), ("7.txt", text)]
    return out


def test_rejects_stand_in_the_table_with_row_and_key(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", evil())
    found = check(shard, tmp_path / "out")
    assert rows(tmp_path / "out", "rejects") == [
        (2, "2", "no_image"),
        (3, "3", "no_caption"),
        (4, "4", "caption_not_utf8"),
        (5, "../5", "unsafe_name"),
        (6, "6", "unreadable_image"),
        (7, "0", "duplicate_key"),
        (8, "7", "unreadable_image"),
    ]
    assert found["good"] == 2 and found["notes"]["dangerous_member"] == 2
    table = read_table(tmp_path / "out" / "rejects")
    assert set(table["shard"].to_pylist()) == {"a.tar"}


def test_a_clean_copy_has_the_usable_samples_and_known_members_byte_for_byte(
    tmp_path: Path,
) -> None:
    shard = write_tar(tmp_path / "in" / "a.tar", evil())
    first = check(shard, tmp_path / "out", tmp_path / "clean")
    copy = tmp_path / "clean" / "a.tar"
    data = copy.read_bytes()
    assert first["outputs"][-1] == str(copy)
    raw = list(webdataset.WebDataset(str(copy), shardshuffle=False))
    given = dict(evil()[:8])
    kept = [{k: v for k, v in sample.items() if not k.startswith("__")} for sample in raw]
    assert [sample["__key__"] for sample in raw] == ["0", "1"]
    assert kept == [
        {"jpg": given["0.jpg"], "txt": given["0.txt"]},
        {"jpg": given["1.jpg"], "txt": given["1.txt"], "cls": b"3"},
    ]
    again = check(copy, tmp_path / "again")
    assert (again["good"], again["rejects"], again["notes"]) == (2, {}, {})
    os.utime(shard, ns=(9, 9))
    second = check(shard, tmp_path / "out2", tmp_path / "clean")
    assert copy.read_bytes() == data and second["repaired"] == first["repaired"]


def test_facts_of_a_format_are_counted_and_have_no_row(tmp_path: Path) -> None:
    images = {"0.png": Image.new("RGBA", (8, 8)), "1.png": Image.new("P", (8, 8))}
    files = []
    for name, image in images.items():
        out = io.BytesIO()
        image.save(out, "PNG")
        files += [(name, out.getvalue()), (name[0] + ".txt", b"a dog"), (name[0] + ".exe", b"MZ")]
    found = check(write_tar(tmp_path / "a.tar", files), tmp_path / "out")
    assert found["notes"] == {"unknown_member": 1, "alpha": 1, "palette": 1}
    assert rows(tmp_path / "out", "problems") == [(0, "0", "unknown_member")]


def test_no_member_is_ever_unpickled(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    attack = b"cos\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR."
    names = ["0.pkl", "0.pyd", "0.pth", "0.jpg", "0.json", "0.cls", "0.txt"]
    shard = write_tar(tmp_path / "a.tar", [(name, attack) for name in names])
    found = check(shard, tmp_path / "out", tmp_path / "clean")
    assert found["rejects"] == {"unreadable_image": 1} and not canary.exists()
    assert not (tmp_path / "clean" / "a.tar").exists()


def test_shards_of_subfolders_keep_their_names(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "x" / "a.tar", members(1))
    found = check_shard(
        str(shard), tmp_path / "out", root=str(tmp_path), rules={}, repair=str(tmp_path / "clean")
    )
    assert (tmp_path / "out" / "rejects" / "x%2Fa.tar.parquet").exists()
    assert found["outputs"][-1] == str(tmp_path / "clean" / "x" / "a.tar")
