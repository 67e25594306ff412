"""One streamed shard: what is kept of a damaged one, that every loss is told, hostile bytes."""

import collections
import errno
import gzip
import io
import itertools
import os
import tarfile
import tracemalloc

import fsspec
import pytest

from clipkit.data import stream_shards
from clipkit.data.shard_store import ShardStore, StoreError
from clipkit.data.stream_shards import RemoteStream, read_shard
from clipkit.errors import DataError
from tests.fixtures_shards import sample_members, tar_bytes, write_tar

WANTED = ("png", "txt")
COUNT = 30


WHOLE = tar_bytes(sample_members(0, COUNT))


def read(url, **options):
    """Keys of whole samples, keys of others, and what was reported."""
    told, whole, part = [], [], []
    for raw in read_shard(
        str(url), WANTED, options.pop("max_bytes", 10**6), told.append, **options
    ):
        (whole if {"png", "txt"} <= raw.keys() else part).append(int(raw["__key__"]))
    return whole, part, told


def offset_of(name, data):
    """Where the header of a member begins."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.getmember(name).offset


def flipped(data, name):
    at = offset_of(name, data) + 10
    return data[:at] + bytes(b ^ 0xFF for b in data[at : at + 40]) + data[at + 40 :]


def in_image(data, name):
    at = offset_of(name, data) + 512 + 40
    return data[:at] + bytes(b ^ 0xFF for b in data[at : at + 20]) + data[at + 20 :]


FAULTS = {
    "whole": (lambda d: d, 30, [], []),
    "cut inside an image": (
        lambda d: d[: offset_of("000015.png", d) + 512 + 50],
        15,
        [],
        ["broken_shard"],
    ),
    "cut inside a caption": (
        lambda d: d[: offset_of("000015.txt", d) + 512 + 5],
        15,
        [15],
        ["broken_shard"],
    ),
    "cut inside a header": (
        lambda d: d[: offset_of("000015.png", d) + 200],
        15,
        [],
        ["rest_of_shard_lost"],
    ),
    "cut inside the padding": (
        lambda d: d[: offset_of("000016.png", d) - 200],
        16,
        [],
        ["broken_shard"],
    ),
    "cut between samples": (lambda d: d[: offset_of("000015.png", d)], 15, [], []),
    "header flipped": (lambda d: flipped(d, "000015.png"), 15, [], ["rest_of_shard_lost"]),
    "header of a caption flipped": (
        lambda d: flipped(d, "000015.txt"),
        15,
        [15],
        ["rest_of_shard_lost"],
    ),
    "last header flipped": (lambda d: flipped(d, "000029.txt"), 29, [29], ["rest_of_shard_lost"]),
    "zeros in the middle": (
        lambda d: d[: offset_of("000015.png", d)] + bytes(1024) + d[offset_of("000015.png", d) :],
        15,
        [],
        ["rest_of_shard_lost"],
    ),
    "first header flipped": (lambda d: flipped(d, "000000.png"), 0, [], ["broken_shard"]),
    "bytes of an image flipped": (lambda d: in_image(d, "000015.png"), 30, [], []),
    "no end mark": (lambda d: d[: len(d.rstrip(b"\0")) // 512 * 512 + 512], 30, [], []),
    "empty": (lambda d: b"", 0, [], ["broken_shard"]),
    "html": (lambda d: b"<html>" + b"no such key " * 100, 0, [], ["broken_shard"]),
    "zeros behind": (lambda d: d + bytes(10_000), 30, [], []),
    "a second archive behind": (lambda d: d + d, 30, [], ["rest_of_shard_lost"]),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("way", ["file", "stream", "store", "gzip", "pipe"])
def test_what_is_kept_and_what_is_told(tmp_path, fault, way):
    damage, kept, part, told = FAULTS[fault]
    data = damage(WHOLE)
    path = tmp_path / "a.tar"
    path.write_bytes(gzip.compress(data) if way == "gzip" else data)
    options, url = {}, str(path)
    if way in ("stream", "store"):
        url = f"file://{path}"
    if way == "store":
        options = {"store": ShardStore(tmp_path / "cache", 10**8)}
    if way == "pipe":
        url, options = f"pipe:cat {path}", {"allow_pipe": True}
    assert read(url, **options) == (list(range(kept)), part, told)


def test_a_cut_gzip_keeps_what_came_before(tmp_path):
    path = tmp_path / "a.tar"
    data = gzip.compress(WHOLE)
    path.write_bytes(data[: len(data) // 2])
    whole, _, told = read(path)
    assert 5 < len(whole) < 25 and whole == list(range(len(whole)))
    assert told == ["broken_shard"]


@pytest.mark.parametrize("way", ["file", "stream", "store"])
def test_a_missing_shard_is_told(tmp_path, way):
    url = f"{'' if way == 'file' else 'file://'}{tmp_path}/gone.tar"
    store = ShardStore(tmp_path / "cache", 10**8) if way == "store" else None
    assert read(url, store=store) == ([], [], ["broken_shard"])
    assert read(tmp_path) == ([], [], ["broken_shard"])  # a folder


def test_pipes(tmp_path):
    path = write_tar(tmp_path / "a.tar", sample_members(0, COUNT))
    canary = tmp_path / "canary"
    for url in (f"pipe:touch {canary}", f"PIPE:touch {canary}"):
        with pytest.raises(DataError, match="would run a shell command"):
            read(url)
    assert not canary.exists()
    whole = list(range(COUNT))
    assert read(f"pipe:cat {path}", allow_pipe=True) == (whole, [], [])
    assert read(f"pipe:cat {path}; exit 3", allow_pipe=True) == (whole, [], ["broken_shard"])
    assert read("pipe:exit 3", allow_pipe=True) == ([], [], ["broken_shard"])


def test_a_pipe_given_up_half_way_is_ended_at_once(tmp_path):
    path = write_tar(tmp_path / "a.tar", sample_members(0, 3))
    told = []
    samples = read_shard(
        f"pipe:cat {path}; exec sleep 1000", WANTED, 10**6, told.append, allow_pipe=True
    )
    assert next(samples)["__key__"] == "000000"
    samples.close()
    assert told == []


def test_only_wanted_members_are_read(tmp_path):
    members = [
        ("0.png", b"i"),
        ("0.pyd", b"x"),
        ("0.TXT", b"t"),
        ("0.seg.png", b"s"),
        (".png", b""),
    ]
    path = write_tar(tmp_path / "a.tar", members)
    samples = list(read_shard(str(path), WANTED, 100, [].append))
    assert samples == [{"__key__": "0", "__url__": str(path), "png": b"i", "txt": b"t"}]


def test_links_and_folders_are_no_members(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE)):
            info = tarfile.TarInfo(f"{number}.png")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    assert list(read_shard(str(path), WANTED, 100, [].append)) == []


def test_a_large_member_is_not_read_and_the_shard_goes_on(tmp_path):
    members = [("0.png", bytes(5000)), ("0.txt", b"t"), ("0.bin", bytes(9000)), ("1.png", b"i")]
    told = []
    path = write_tar(tmp_path / "a.tar", members)
    first, second = read_shard(str(path), WANTED, 1000, told.append)
    assert first["png"] is None and first["txt"] == b"t"
    assert second["png"] == b"i" and told == []


def test_a_repeated_member_is_told(tmp_path):
    path = write_tar(tmp_path / "a.tar", [*sample_members(0, 1), *sample_members(0, 1)])
    assert read(path) == ([0], [], ["repeated_member"] * 2)


def header(name, size, kind=b"0"):
    info = tarfile.TarInfo(name)
    info.type = kind
    data = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    data[124:136] = (b"\xff" if size < 0 else b"\x80") + (size % 2**88).to_bytes(11, "big")
    data[148:156] = b"%06o\0 " % (sum(data[:148]) + 8 * 32 + sum(data[156:512]))
    return bytes(data)


def sparse_gigabytes():
    """A pax sparse file: no content, 100 GB of zeros when read."""
    info = tarfile.TarInfo("0.png")
    info.pax_headers = {
        "GNU.sparse.size": str(10**11),
        "GNU.sparse.numblocks": "1",
        "GNU.sparse.map": f"{10**11},0",
    }
    return info.tobuf(tarfile.PAX_FORMAT)


HOSTILE = {
    "negative size": header("0.png", -512),
    "size minus one": header("0.png", -1) + bytes(64_000_000),
    "negative size of a member that is skipped": header("0.bin", -512),
    "endless size": header("0.png", 2**80),
    "endless pax header": gzip.compress(header("x", 60_000_000, b"x") + bytes(64_000_000), 1),
    "pax headers without end": header("x", 512, b"x") * 20_000 + bytes(512),
    "sparse gigabytes": sparse_gigabytes(),
    "zeros without end": gzip.compress(tar_bytes(sample_members(0, 1)) + bytes(64_000_000), 1),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_headers_cost_neither_memory_nor_time(tmp_path, kind):
    path = tmp_path / "a.tar"
    good = tar_bytes(sample_members(0, 2))
    good = good[: len(good.rstrip(b"\0")) // 512 * 512 + 512]
    hostile = HOSTILE[kind]
    alone = hostile[:2] == b"\x1f\x8b"
    path.write_bytes(hostile if alone else good + hostile + bytes(1024))
    tracemalloc.start()
    try:
        whole, part, told = read(path)
        assert tracemalloc.get_traced_memory()[1] < 30e6
    finally:
        tracemalloc.stop()
    if not alone:
        assert whole == [0, 1]
    assert told or kind == "sparse gigabytes"  # which stands for a sample without an image
    assert part == ([0] if kind == "endless size" else [])


def test_names_that_are_no_utf8_stay_apart(tmp_path):
    data = bytearray(tar_bytes([("1_.png", b"i"), ("2_.png", b"j")]))
    for at, name in ((0, b"\xff\xfe"), (1024, b"\xff\xfd")):
        data[at : at + 2] = name
        head = data[at : at + 512]
        data[at + 148 : at + 156] = b"%06o\0 " % (sum(head[:148]) + 8 * 32 + sum(head[156:]))
    path, told = tmp_path / "a.tar", []
    path.write_bytes(data)
    first, second = read_shard(str(path), WANTED, 100, told.append)
    assert (first["png"], second["png"], told) == (b"i", b"j", [])
    assert first["__key__"].encode()  # no surrogates


def test_reading_takes_no_memory_for_what_was_read(tmp_path):
    path = write_tar(tmp_path / "a.tar", [(f"{i:06d}.txt", b"x") for i in range(2000)])
    samples = read_shard(str(path), WANTED, 100, [].append)
    tracemalloc.start()
    try:
        collections.deque(itertools.islice(samples, 100), maxlen=0)
        early = tracemalloc.get_traced_memory()[0]
        collections.deque(itertools.islice(samples, 1800), maxlen=0)
        assert tracemalloc.get_traced_memory()[0] - early < 50_000  # 1,800 headers take 800,000
    finally:
        tracemalloc.stop()


class Dropping(io.BytesIO):
    """A remote file whose connection is reset every 5 reads."""

    plan: list = []

    def read(self, count=-1):
        self.plan.append(self.tell())
        assert len(self.plan) < 100, "it begins again and again"
        if len(self.plan) % 5 == 0:
            raise OSError(errno.ECONNRESET, "reset")
        return super().read(min(count, 700))


@pytest.fixture()
def dropping(monkeypatch):
    def install(data):
        class Files:
            def open(self, path, mode):
                return Dropping(data)

        Dropping.plan = []
        monkeypatch.setattr(stream_shards, "filesystem", lambda url: (Files(), "a.tar"))

    return install


def test_a_stream_goes_on_at_the_same_byte(dropping):
    data, waits = os.urandom(20_000), []
    dropping(data)
    with RemoteStream("s3://b/a.tar", sleep=waits.append) as raw, io.BufferedReader(raw) as file:
        assert file.read() == data
    assert len(waits) >= 5


def test_a_connection_that_stays_down_ends_the_shard_not_the_run(tmp_path, monkeypatch):
    class Down:
        def open(self, path, mode):
            raise ConnectionError

    waits = []
    monkeypatch.setattr(stream_shards, "filesystem", lambda url: (Down(), "a.tar"))
    with pytest.raises(StoreError, match="4 attempts"):
        RemoteStream("s3://b/a.tar", 3, waits.append).read(1)
    assert len(waits) == 3
    monkeypatch.setattr(stream_shards, "RemoteStream", lambda url: RemoteStream(url, 0))
    monkeypatch.setattr(stream_shards.io, "BufferedReader", lambda raw, size: raw)
    assert read("s3://b/a.tar") == ([], [], ["broken_shard"])


def test_memory_urls_stream():
    files = fsspec.filesystem("memory")
    files.pipe("/streamed/a.tar", tar_bytes(sample_members(0, COUNT)))
    assert read("memory://streamed/a.tar") == (list(range(COUNT)), [], [])
    files.rm("/streamed", recursive=True)
