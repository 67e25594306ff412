"""Tars and the files beside them: read, counted or refused; members lie inside, no path is made."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipkit.data.loader import IndexedLoader
from clipkit.data.mixture import Mixture
from clipkit.data.order import Order
from clipkit.data.sources import ShardSource
from clipkit.data.stream_shards import read_shard
from clipkit.data.tar_index import load_index
from clipkit.data.wds_folder import open_folder
from tests.fixtures_shards import number_tokenizer, sample_members, small_reader, tar_bytes
from tests.fuzz.bounds import bounds, cases, folder_of_its_own, some_or_many
from tests.fuzz.mutations import ODD_TEXTS, damaged

WHOLE = {
    tar_format: tar_bytes(sample_members(0, 4), tar_format)
    for tar_format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
}
KINDS = [tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE,
         tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE]  # fmt: skip
NAMES = st.sampled_from(["000000", "000001", "a", "d/a", "../../e", "/etc/f", "", ".", "a b", "é"])
ENDS = st.sampled_from(
    [".png", ".txt", ".json", ".PNG", "", ".", ".pyd", ".pkl", ".pt", ".cls", ".a.png"]
)


def plain(name: str) -> str:
    """A name that a tar header can hold."""
    return name.encode("utf-8", "replace").decode().replace("\0", "")


@st.composite
def built(draw: st.DrawFn) -> bytes:
    """A tar of odd members: names, kinds, links, pax records; sometimes damaged too."""
    tar_format = draw(st.sampled_from(list(WHOLE)))
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tar_format, encoding="utf-8") as tar:
        for name, content in draw(st.permutations(sample_members(0, 3))):
            info = tarfile.TarInfo(
                draw(st.sampled_from([name]) | st.builds(str.__add__, NAMES, ENDS))
            )
            info.type = draw(st.sampled_from([tarfile.REGTYPE, *KINDS]))
            info.linkname = plain(draw(ODD_TEXTS))[:90]
            content = draw(st.sampled_from([content, b"", b"\x89PNG", content * 9]))
            info.size = len(content) if info.isreg() else 0
            if tar_format == tarfile.PAX_FORMAT:
                keys = st.sampled_from(["path", "size", "linkpath", "GNU.sparse.major", "x"])
                records = draw(st.dictionaries(keys, ODD_TEXTS | st.just("9" * 30), max_size=2))
                info.pax_headers = {k: plain(v) for k, v in records.items()}
            tar.addfile(info, io.BytesIO(content))
    data = out.getvalue()
    return draw(damaged(data)) if draw(st.booleans()) else data


SHARDS = built() | st.sampled_from(list(WHOLE.values())).flatmap(damaged)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Caches lie below it too."""
    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path


def write(place: Path, content: bytes) -> tuple[Path, str]:
    """(folder, shard)"""
    folder = folder_of_its_own(place)
    (folder / "000.tar").write_bytes(content)
    return folder, str(folder / "000.tar")


@some_or_many(80, 3000)
def test_index(place: Path, count: int) -> None:
    @cases(count)
    @given(SHARDS)
    def one(content: bytes) -> None:
        _, path = write(place, content)
        with bounds(place):
            index = load_index(path)
            assert (index.offsets + index.sizes <= len(content)).all() and len(index.keys) == len(
                index
            )
            again = load_index(path)  # from its sidecar
            assert again.checksum == index.checksum and again.damage == index.damage

    one()


def batches(path: str, most: int = 6) -> None:
    """What a loader gives of a shard."""
    source = ShardSource([path])
    order = Order(source.counts, seed=0, global_batch_size=1, streams=1)
    mixture = Mixture([order], seed=0, global_batch_size=1)
    loader = IndexedLoader(
        [source], mixture, small_reader(), number_tokenizer_of_any, max_bad_fraction=1.0
    )
    for batch in itertools.islice(iter(loader), most):
        assert batch.images["image"].shape == (1, 3, 8, 8)


def number_tokenizer_of_any(texts: list[str]):  # type: ignore[no-untyped-def]
    """Tokens of captions that damage may have changed."""
    return number_tokenizer([f"x {sum(map(ord, text)) % 64}" for text in texts])


@some_or_many(40, 1000)
def test_loader(place: Path, count: int) -> None:
    @cases(count)
    @given(SHARDS)
    def one(content: bytes) -> None:
        folder, path = write(place, content)
        before = {p.name for p in folder.iterdir()}
        with bounds(place):
            batches(path)
        assert {p.name for p in folder.iterdir()} - before <= {"000.tar.idx.npz"}

    one()


@pytest.mark.parametrize("record", [b"1" * 1_000_000, b"5 a=\n" * 12_000, b"9 x=" + b"9" * 500_000])
def test_a_header_that_takes_for_ever_to_read(place: Path, record: bytes) -> None:
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, len(record)
    header = info.tobuf(tarfile.USTAR_FORMAT) + record + b"\0" * (-len(record) % 512)
    _, path = write(place, header + WHOLE[tarfile.USTAR_FORMAT])
    with bounds(place):
        list(read_shard(path, ("png", "txt"), 100_000, [].append))
    with bounds(place):
        load_index(path)


@some_or_many(40, 1000)
def test_streaming(place: Path, count: int) -> None:
    @cases(count)
    @given(SHARDS, st.booleans())
    def one(content: bytes, zipped: bool) -> None:
        _, path = write(place, gzip.compress(content, 1) if zipped else content)
        with bounds(place):
            told: list[str] = []
            for sample in read_shard(path, ("png", "txt"), 500, told.append):
                assert all(v is None or len(v) <= 500 for k, v in sample.items() if k[0] != "_")
            assert set(told) <= {"broken_shard", "rest_of_shard_lost", "repeated_member"}

    one()


@some_or_many(40, 1000)
def test_sidecar(place: Path, count: int) -> None:
    """A damaged index is none: the shard is read again, and says what it said."""
    _, path = write(place, WHOLE[tarfile.USTAR_FORMAT])
    expected = load_index(path)
    sidecar = Path(f"{path}.idx.npz")
    whole = sidecar.read_bytes()

    @cases(count)
    @given(damaged(whole))
    def one(content: bytes) -> None:
        sidecar.write_bytes(content)
        with bounds(place):
            found = load_index(path)
            assert np.array_equal(found.starts, expected.starts)
            assert (found.offsets + found.sizes <= os.path.getsize(path)).all()

    one()


@some_or_many(30, 800)
def test_evaluation_set(place: Path, count: int) -> None:
    members = [
        (n.replace(".txt", ".cls"), b"1" if n.endswith("txt") else d)
        for n, d in sample_members(0, 4)
    ]
    shard = tar_bytes(members)
    files = {
        "test/0.tar": shard,
        "test/nshards.txt": b"1",
        "classnames.txt": b"one\ntwo\n",
        "zeroshot_classification_templates.txt": b"a {c}\n",
        "dataset_type.txt": b"classification",
    }
    odd = st.sampled_from(
        [b"", b"9" * 12, b"9" * 5000, b"-1", b"\xff", b"\0", b"retrieval", b"multilabel"]
    )

    @cases(count)
    @given(st.sampled_from(sorted(files)), st.data())
    def one(name: str, data: st.DataObject) -> None:
        root = folder_of_its_own(place)
        (root / "test").mkdir()
        for file, content in files.items():
            (root / file).write_bytes(content)
        (root / name).write_bytes(data.draw(damaged(files[name]) | odd))
        with bounds(place):
            found = open_folder(root)
            list(found.images(0, len(found)))
            {"classification": found.labels, "retrieval": found.captions}.get(
                found.kind, found.label_sets
            )()

    one()


@some_or_many(20, 300)
def test_counts_beside_a_shard(place: Path, count: int) -> None:
    sizes = {"000.tar": 4}

    @cases(count)
    @given(
        damaged(json.dumps(sizes).encode()) | st.sampled_from([b"{}", b"[]", b'{"000.tar": 1e400}'])
    )
    def one(content: bytes) -> None:
        folder, path = write(place, WHOLE[tarfile.USTAR_FORMAT])
        (folder / "sizes.json").write_bytes(content)
        with bounds(place):
            batches(path, most=2)

    one()
