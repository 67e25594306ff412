"""One planned shard: bytes unchanged, extension by content, rejects told and tried again."""

from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from clipkit.data.bad_samples import BadSample
from clipkit.data.shard_reader import iter_samples
from clipkit.data.tar_index import build_index
from data_tools.build.pack import is_mended, pack_shard, read_image, rejects_path
from data_tools.build.rows import SCHEMA, RowList
from data_tools.tables import read_table, write_table
from tests.fixtures_shards import image_bytes, noise_bytes


def plan(tmp_path: Path, rows: pyarrow.Table) -> str:
    path = tmp_path / "out/.plan/00000.parquet"
    write_table(path, dict(zip(rows.column_names, rows.columns)))
    return str(path)


def files(root: Path, content: dict[str, bytes | None]) -> pyarrow.Table:
    rows = RowList(root)
    for name, data in content.items():
        if data is not None:
            (root / name).write_bytes(data)
        rows.add_file(name, txt=f"a {name}", json='{"n": 1}' if name == "0.png" else "")
    return rows.table()


def pack(shard: str, tmp_path: Path, check: str = "decode") -> dict:
    return pack_shard(shard, tmp_path / "out", prefix="p", check=check)


def test_members_and_rejects(tmp_path: Path) -> None:
    jpeg = noise_bytes(2, "JPEG", 32)
    content = {
        "0.png": noise_bytes(0), "1.png": noise_bytes(1, "WEBP"), "2.png": jpeg,
        "3.png": None, "4.png": b"", "5.png": noise_bytes(3, "GIF"), "6.jpg": jpeg[:-200],
    }  # fmt: skip
    shard = plan(tmp_path, files(tmp_path, content))
    facts = pack(shard, tmp_path)
    assert (facts["samples"], facts["rejects"]) == (3, 4)
    tar = tmp_path / "out/p-00000.tar"
    found = [(s.key, s.members) for s in iter_samples(build_index(str(tar)))]
    assert found == [
        ("000000000", {"json": b'{"n": 1}', "png": content["0.png"], "txt": b"a 0.png"}),
        ("000000001", {"txt": b"a 1.png", "webp": content["1.png"]}),
        ("000000002", {"jpg": jpeg, "txt": b"a 2.png"}),
    ]
    rejects = read_table(rejects_path(tmp_path / "out", shard))
    assert rejects["cause"].to_pylist() == ["missing"] + ["unreadable_image"] * 3
    assert rejects["row"].to_pylist() == [3, 4, 5, 6]
    assert facts["outputs"] == ["p-00000.tar", ".plan/rejects/00000.parquet"]
    # a header tells nothing of the end of a file
    assert pack(shard, tmp_path, "header")["samples"] == 4
    before = tar.read_bytes()
    pack(shard, tmp_path, "header")
    assert tar.read_bytes() == before


def test_a_mended_image_is_seen_and_rejects_go(tmp_path: Path) -> None:
    rows = files(tmp_path, {"0.png": None, "1.png": b"junk"})
    shard, out = plan(tmp_path, rows), tmp_path / "out"
    facts = pack(shard, tmp_path)
    assert facts["samples"] == 0 and not (out / "p-00000.tar").exists()
    assert not is_mended(shard, out, "decode")
    (tmp_path / "1.png").write_bytes(image_bytes())
    assert is_mended(shard, out, "decode")
    pack(shard, tmp_path)
    (tmp_path / "0.png").write_bytes(image_bytes())
    assert pack(shard, tmp_path)["samples"] == 2
    assert not rejects_path(out, shard).exists() and not is_mended(shard, out, "decode")


def test_images_out_of_row_groups_in_any_order(tmp_path: Path) -> None:
    images = [noise_bytes(i) for i in range(7)]
    cells = [{"bytes": image, "path": None} for image in images]
    source = tmp_path / "t.parquet"
    parquet.write_table(pyarrow.table({"image": cells}), source, row_group_size=3)
    rows = RowList(tmp_path)
    for number in (5, 0, 6, 2, 40):
        rows.add(key=f"k{number}", image=str(source), row=number, column="image", txt="t")
    shard = plan(tmp_path, rows.table())
    assert pack(shard, tmp_path)["rejects"] == 1
    found = list(iter_samples(build_index(str(tmp_path / "out/p-00000.tar"))))
    assert [(s.key, s.members["png"]) for s in found] == [
        (f"k{n}", images[n]) for n in (5, 0, 6, 2)
    ]


def test_large_images_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = files(tmp_path, {"0.png": image_bytes(side=40)}).to_pylist()
    assert set(rows[0]) == set(SCHEMA.names)
    monkeypatch.setattr("data_tools.build.pack._MAX_PIXELS", 1599)
    with pytest.raises(BadSample) as bomb:
        read_image(rows[0], "header", {})
    monkeypatch.setattr("data_tools.build.pack._MAX_BYTES", 10)
    with pytest.raises(BadSample) as heavy:
        read_image(rows[0], "header", {})
    assert (bomb.value.cause, heavy.value.cause) == ("too_many_pixels", "too_many_bytes")
