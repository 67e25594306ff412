"""A sidecar is read whole or not at all; nothing in it is believed unseen."""

import io
import os
import pickle
import zipfile

import numpy as np
import pytest

from clipkit.data import index_sidecar
from clipkit.data.index_sidecar import (
    Fields,
    read_fields,
    read_head,
    sidecar_bytes,
    sidecar_places,
    stamp_of,
    write_sidecar,
)
from clipkit.data.tar_index import index_fields, load_index
from tests.fixtures_shards import sample_members, write_tar


@pytest.fixture
def shard(tmp_path):
    return write_tar(tmp_path / "a.tar", sample_members(0, 3))


@pytest.fixture
def fields(shard):
    return index_fields(load_index(str(shard)))


def put(path, fields, **changes):
    """Write a sidecar with other members than `fields`."""
    changed = Fields(fields.head, {**fields.members, **changes})
    path.write_bytes(sidecar_bytes(changed, stamp_of(str(path)[: -len(".idx.npz")])))


@pytest.fixture
def sidecar(shard, fields):
    return sidecar_places(str(shard))[0]


def equal(a, b):
    same = all(
        np.array_equal(a.members[k], b.members[k])
        if isinstance(a.members[k], np.ndarray)
        else a.members[k] == b.members[k]
        for k in a.members
    )
    return a.head == b.head and same


def test_round_trip(shard, fields, sidecar):
    stamp = stamp_of(str(shard))
    assert equal(read_fields(sidecar, stamp), fields)
    assert read_head(sidecar, stamp) == fields.head


@pytest.mark.parametrize("flag", ["accepted", "end_mark", "damaged", "noted"])
def test_each_flag_of_the_head(shard, fields, sidecar, flag):
    for value in (True, False):
        head = index_sidecar.Head(
            **{**fields.head.__dict__, flag: value, "expected": 7, "count": 3}
        )
        write_sidecar(str(shard), Fields(head, fields.members), stamp_of(str(shard)))
        assert read_head(sidecar) == head and head.known == 7


def test_a_pipe_is_no_sidecar_and_no_shard(tmp_path, fields):
    os.mkfifo(tmp_path / "pipe")
    assert read_head(tmp_path / "pipe") is None
    with pytest.raises(OSError, match="no regular file"):
        stamp_of(str(tmp_path / "pipe"))


def test_stamp_must_fit(shard, fields, sidecar):
    size, mtime = stamp_of(str(shard))
    for stamp in ((size + 1, mtime), (size, mtime + 1), (size + 1, None)):
        assert read_head(sidecar, stamp) is None and read_fields(sidecar, stamp) is None
    for stamp in ((size, mtime), (size, None), None):
        assert read_head(sidecar, stamp) == fields.head


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"not a zip", pickle.dumps([1]), b"\x93NUMPY\x01"]
)
def test_what_is_no_sidecar_is_absent(shard, sidecar, content):
    sidecar.write_bytes(content)
    assert read_head(sidecar) is None and read_fields(sidecar, stamp_of(str(shard))) is None


def test_any_flipped_or_missing_byte_is_absent_or_harmless(shard, fields, sidecar):
    index = load_index(str(shard))
    whole = sidecar.read_bytes()
    for i in [*range(0, 320, 3), *range(320, len(whole), 37)]:
        damaged = bytearray(whole)
        damaged[i] ^= 0xFF
        for content in (bytes(damaged), whole[:i]):
            sidecar.write_bytes(content)
            assert read_head(sidecar) in (None, fields.head), i
            again = load_index(str(shard), write=False)
            assert again.head == index.head and again.damage == index.damage, i


def test_never_unpickles(shard, sidecar, tmp_path):
    canary = tmp_path / "canary"

    class Evil:
        def __reduce__(self):
            return open, (str(canary), "w")

    with np.load(sidecar) as file:
        arrays = dict(file)
    for name in ("head", "starts", "key_text"):
        out = {**arrays, name: np.array([Evil()], dtype=object)}
        np.savez(sidecar, **out)
        assert read_fields(sidecar, stamp_of(str(shard))) is None
        assert len(load_index(str(shard), write=False)) == 3
        assert not canary.exists()


def test_compressed_entries_are_refused_before_they_expand(shard, sidecar, monkeypatch):
    with np.load(sidecar) as file:
        arrays = dict(file)
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w") as archive:
        for name, array in arrays.items():
            out = io.BytesIO()
            np.save(out, array)
            kind = zipfile.ZIP_DEFLATED if name == "sizes" else zipfile.ZIP_STORED
            archive.writestr(f"{name}.npy", out.getvalue(), kind)
    sidecar.write_bytes(bomb.getvalue())
    monkeypatch.setattr(np, "load", lambda *a, **k: pytest.fail("expanded"))
    assert read_fields(sidecar, stamp_of(str(shard))) is None


HOSTILE = {
    "starts": [
        lambda a: a[::-1].copy(),  # decreasing
        lambda a: np.concatenate([[1], a[1:]]),
        lambda a: np.concatenate([a[:-1], [10**9]]),
        lambda a: np.array([0, 0, 2, 6], np.int64),  # an empty sample
        lambda a: a.astype(np.float64),
        lambda a: a.astype(np.int32),
        lambda a: a[:-1],
        lambda a: a.reshape(1, -1),
    ],
    "member_extension": [
        lambda a: a + 2,
        lambda a: a - 1,
        lambda a: a.astype(np.int64),
        lambda a: a[:-1],
    ],
    "offsets": [
        lambda a: a + 10**6,
        lambda a: a - 10**6,
        lambda a: a[::-1].copy(),
        lambda a: np.full_like(a, 2**63 - 1),
        lambda a: a[:-1],
        lambda a: a.astype(np.uint64),
    ],
    "sizes": [lambda a: -a, lambda a: np.full_like(a, 2**63 - 1), lambda a: a[:-1]],
    "key_text": [lambda t: t + "\0extra", lambda t: t.replace("\0", "-"), lambda t: ""],
    "extensions": [lambda e: e[:1]],
}


@pytest.mark.parametrize(
    ("name", "number"),
    [(name, i) for name, changes in HOSTILE.items() for i in range(len(changes))],
)
def test_numbers_that_cannot_be_are_absent(shard, fields, sidecar, name, number):
    put(sidecar, fields, **{name: HOSTILE[name][number](fields.members[name])})
    assert read_head(sidecar) is not None
    assert read_fields(sidecar, stamp_of(str(shard))) is None


def test_counts_of_a_head_have_bounds(shard, fields, sidecar):
    for change in ({"count": -1}, {"count": 1 << 41}, {"expected": -1}, {"expected": 1 << 41}):
        head = index_sidecar.Head(**{**fields.head.__dict__, **change})
        write_sidecar(str(shard), Fields(head, fields.members), stamp_of(str(shard)))
        assert read_head(sidecar) is None


class TestPlaces:
    """Beside the shard, or in the cache folder."""

    @pytest.fixture
    def cache(self, monkeypatch, tmp_path):
        monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path / "cache"))
        return tmp_path / "cache"

    def test_read_only_folder_uses_the_cache(self, cache, shard, monkeypatch):
        monkeypatch.setattr(index_sidecar.os, "access", lambda *a: False)
        index = load_index(str(shard))
        assert not sidecar_places(str(shard))[0].exists()
        assert len(list(cache.rglob("*.npz"))) == 1
        assert read_fields(sidecar_places(str(shard))[1], stamp_of(str(shard))) is not None
        assert load_index(str(shard)).head == index.head

    def test_a_sidecar_that_came_with_a_read_only_folder_is_used(self, cache, shard, monkeypatch):
        load_index(str(shard))
        monkeypatch.setattr(index_sidecar.os, "access", lambda *a: False)
        load_index(str(shard))
        assert not cache.exists()

    def test_full_disk_leaves_nothing_behind(self, cache, shard, monkeypatch):
        def full(*args):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(index_sidecar.os, "replace", full)
        assert len(load_index(str(shard))) == 3
        assert [p.name for p in shard.parent.rglob("*") if p.is_file()] == ["a.tar"]
