"""Shards as a source: reads by the index, memory that stays small, damage counted and told."""

import json
import os
import pickle
import shutil
import threading
import time

import numpy as np
import pytest

from clipkit.data import index_sidecar, sources
from clipkit.data.bad_samples import BadSample
from clipkit.data.index_sidecar import Head
from clipkit.data.sources import ShardSource
from clipkit.data.tar_index import load_index
from clipkit.errors import DataError
from tests.fixtures_shards import sample_members, tar_bytes, write_shards, write_tar

WANTED = ("png", "txt")
LIMIT = 10**6


def read(source, part, row, wanted=WANTED, limit=LIMIT):
    return source.members(part, row, wanted, limit)


def cause(source, part, row, **options):
    with pytest.raises(BadSample) as caught:
        read(source, part, row, **options)
    return caught.value.cause


@pytest.fixture
def paths(tmp_path):
    return write_shards(tmp_path / "shards", [5, 3, 4])


class TestReading:
    """members(), key(), part_name() and the counts."""

    def test_counts_names_and_samples(self, paths):
        source = ShardSource(paths)
        assert source.counts.tolist() == [5, 3, 4] and source.counts.dtype == np.int64
        assert [source.part_name(p) for p in range(3)] == paths
        first = 0
        for part, count in enumerate(source.counts):
            for row in range(count):
                members = read(source, part, row)
                assert set(members) == {"png", "txt"}
                assert members["txt"] == f"caption {first + row}".encode()
                assert source.key(part, row) == f"{first + row:06d}"
            first += count
        assert source.notes == [] and source.lost == [] and "and 2 more" in source.name

    def test_only_what_is_wanted(self, tmp_path):
        members = [("a.txt", b"1"), ("a.pyd", b"evil"), ("a.TXT", b"2")]
        source = ShardSource([str(write_tar(tmp_path / "a.tar", members))])
        assert read(source, 0, 0) == {"txt": b"1"} and read(source, 0, 1) == {"txt": b"2"}
        assert read(source, 0, 0, wanted=("npy",)) == {}

    @pytest.mark.parametrize("key", ["../a", "/a", "a/../b"])
    def test_a_key_that_points_out_is_a_bad_sample(self, tmp_path, key):
        members = [(f"{key}.txt", b"1"), ("b.txt", b"2")]
        source = ShardSource([str(write_tar(tmp_path / "a.tar", members))])
        assert cause(source, 0, 0) == "unsafe_name" and read(source, 0, 1) == {"txt": b"2"}

    def test_size_limit_before_reading(self, paths, monkeypatch):
        source = ShardSource(paths)
        monkeypatch.setattr(sources.os, "pread", lambda *a: pytest.fail("read"))
        assert cause(source, 0, 0, limit=20) == "too_many_bytes"

    def test_pickled_it_holds_no_file_and_no_index(self, paths):
        source = ShardSource(paths)
        expected = read(source, 1, 2)
        again = pickle.loads(pickle.dumps(source))
        assert read(again, 1, 2) == expected and again.manifest == source.manifest
        assert len(pickle.dumps(again)) == len(pickle.dumps(ShardSource(paths)))

    def test_forked_workers_read_at_the_same_time(self, paths):
        source = ShardSource(paths)
        expected = [read(source, p, 0) for p in range(3)]
        child = os.fork()
        if child == 0:
            good = all(read(source, p, 0) == expected[p] for _ in range(200) for p in range(3))
            os._exit(0 if good else 1)
        assert all(read(source, p, 0) == expected[p] for _ in range(200) for p in range(3))
        assert os.waitpid(child, 0)[1] == 0

    def test_open_files_are_bounded(self, tmp_path, monkeypatch):
        monkeypatch.setattr(sources, "_OPEN_FILES", 2)
        source = ShardSource(write_shards(tmp_path, [1] * 6))
        before = len(os.listdir("/proc/self/fd"))
        texts = [read(source, p, 0)["txt"] for p in [*range(6), *range(6)]]
        assert texts[:6] == texts[6:] and len(os.listdir("/proc/self/fd")) <= before + 2

    def test_indexes_are_bounded_in_bytes(self, paths):
        size = load_index(paths[0]).nbytes
        source = ShardSource(paths, index_bytes=int(1.5 * size))
        for part in (0, 1, 2, 0, 1, 2):
            read(source, part, 0)
            assert len(source._indexes) == 1 and part in source._indexes
            assert source._held == sum(i.nbytes for i in source._indexes.values())

    def test_prefetch_of_local_files_does_nothing(self, paths):
        ShardSource(paths).prefetch([0, 1])


class TestFaults:
    """Whatever happens to a shard after the start makes bad samples, never a crash."""

    def test_cut_after_indexing(self, paths):
        source = ShardSource(paths)
        read(source, 0, 0)
        os.truncate(paths[0], 600)
        assert cause(source, 0, 4) == "shard_cut_short"

    def test_gone(self, paths):
        source = ShardSource(paths)
        os.unlink(paths[1])
        assert cause(source, 1, 0) == "unreadable_shard"
        assert source.key(1, 0) == "" and read(source, 0, 0)

    def test_gone_between_index_and_reading(self, paths):
        source = ShardSource(paths)
        source.key(1, 0)
        os.unlink(paths[1])
        assert cause(source, 1, 0) == "unreadable_shard"

    def test_replaced_by_another(self, paths):
        source = ShardSource(paths)
        write_tar_of(paths[1], sample_members(50, 3 + 4))
        assert cause(source, 1, 0) == "changed_shard"

    def test_input_output_error_opens_the_file_anew(self, paths, monkeypatch):
        source = ShardSource(paths)
        expected, pread = read(source, 0, 0), os.pread

        def broken(*args):
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(sources.os, "pread", broken)
        assert cause(source, 0, 0) == "unreadable_shard"
        monkeypatch.setattr(sources.os, "pread", pread)
        assert 0 not in source._files and read(source, 0, 0) == expected

    def test_missing_at_the_start_is_an_error(self, paths):
        os.unlink(paths[1])
        with pytest.raises(DataError, match=r"001\.tar' cannot be read: No such file"):
            ShardSource(paths)


def write_tar_of(path, members):
    with open(path, "wb") as file:
        file.write(tar_bytes(members))


class TestLosses:
    """Section 1a of the fault table: what is kept, what is counted, what is told."""

    @pytest.fixture
    def shard(self, tmp_path):
        return write_tar(tmp_path / "00000.tar", sample_members(0, 30))

    def damage(self, shard, kind):
        index = load_index(str(shard))
        data = bytearray(shard.read_bytes())
        at = int(index.offsets[30])  # the image of sample 15
        if kind == "cut inside an image":
            data = data[: at + 20]
        elif kind == "cut between samples":
            data = data[: at - 512]
        elif kind == "header flipped":
            data[at - 500] ^= 0xFF
        elif kind == "payload flipped":
            data[at + 5] ^= 0xFF
        elif kind == "empty":
            data = b""
        elif kind == "html":
            data = b"<!DOCTYPE html>".ljust(4096)
        elif kind == "no end mark":
            data = data[: int(index.offsets[-1]) + 512]
        shard.write_bytes(data)

    FAULTS = [
        ("cut inside an image", 15, 15, "cut short inside"),
        ("cut between samples", 15, 15, "no end-of-archive mark"),
        ("header flipped", 29, 1, "broken header"),
        ("payload flipped", 30, 0, ""),
        ("empty", 0, 30, "empty file"),
        ("html", 0, 30, "not a tar (begins with"),
        ("no end mark", 30, 0, "nothing is known to be missing"),
    ]

    @pytest.mark.parametrize(("kind", "kept", "lost", "told"), FAULTS)
    @pytest.mark.parametrize("known_by", ["index", "sizes.json", "stats"])
    def test_fault_table(self, shard, kind, kept, lost, told, known_by):
        self.damage(shard, kind)
        if known_by != "index":
            os.unlink(f"{shard}.idx.npz")
            name = "sizes.json" if known_by == "sizes.json" else "00000_stats.json"
            text = {"00000.tar": 30} if known_by == "sizes.json" else {"successes": 30}
            (shard.parent / name).write_text(json.dumps(text))
        for _ in range(2):  # the second time from the new sidecar
            source = ShardSource([str(shard)])
            assert source.counts.tolist() == [kept]
            assert source.lost == ([(str(shard), "missing_samples", lost)] if lost else [])
            assert len(source.notes) == bool(told) and told in "".join(source.notes)
            if lost:
                assert f"{lost} of the 30" in source.notes[0] and "--accept" in source.notes[0]
            for row in range(kept):
                assert set(read(source, 0, row)) == {"png", "txt"}

    def test_damage_without_a_known_count_is_a_note_only(self, shard):
        self.damage(shard, "header flipped")
        os.unlink(f"{shard}.idx.npz")
        source = ShardSource([str(shard)])
        assert source.lost == [] and "29 samples are used" in source.notes[0]

    def test_odd_shards_are_told_and_nothing_is_lost(self, tmp_path):
        path = write_tar(tmp_path / "a.tar", [("a.txt", b"1"), ("a.txt", b"2"), ("a.png", b"3")])
        for _ in range(2):  # the second time from the sidecar
            source = ShardSource([str(path)])
            assert source.counts.tolist() == [2] and source.lost == []
            assert source.notes == [
                f"{path}: 1 samples share the key of their neighbour; 2 samples are used"
            ]

    def test_a_pipe_or_device_is_refused_at_once(self, tmp_path):
        os.mkfifo(tmp_path / "pipe.tar")
        os.symlink("/dev/zero", tmp_path / "zero.tar")
        for name in ("pipe.tar", "zero.tar"):
            with pytest.raises(DataError, match=f"{name}' cannot be read: it is no regular file"):
                ShardSource([str(tmp_path / name)])

    def test_notes_are_bounded(self, tmp_path):
        paths = [str(tmp_path / f"{i}.tar") for i in range(30)]
        for path in paths:
            write_tar_of(path, [("a.txt", b"1")])
            with open(path, "r+b") as file:
                file.write(b"\xff")
        source = ShardSource(paths)
        assert len(source.notes) == 21 and source.notes[-1].startswith("10 more shards")


class TestManifest:
    """Identity of the samples, wherever they lie."""

    def test_places_do_not_count(self, paths, tmp_path):
        other = [shutil.copy(p, f"{tmp_path}/{os.path.basename(p)}") for p in paths]
        assert ShardSource(paths).manifest == ShardSource(other).manifest

    def test_order_and_content_do(self, paths):
        source = ShardSource(paths)
        assert ShardSource(paths[::-1]).manifest != source.manifest
        assert ShardSource(paths[:2]).manifest != source.manifest
        write_tar_of(paths[0], [("x.txt", b"1"), *sample_members(0, 5)[1:]])
        assert ShardSource(paths).manifest != source.manifest

    def test_41_thousand_shards_are_held_small_and_read_by_heads_alone(self, monkeypatch):
        head = Head(10_000, 0, False, True, False, "ab" * 32)
        seen = []
        lock = threading.Lock()

        def fake(path):
            with lock:
                seen.append(path)
            return head

        monkeypatch.setattr(sources, "fresh_head", fake)
        monkeypatch.setattr(sources, "load_index", lambda path: pytest.fail("full index"))
        paths = [f"/data/{i:05d}.tar" for i in range(41_000)]
        source = ShardSource(paths)
        assert int(source.counts.sum()) == 410_000_000 and sorted(seen) == paths
        assert len(pickle.dumps(source)) < 6_000_000


class TestOpening:
    """Heads of many shards in threads; a bar where it takes a while."""

    def test_one_small_read_per_shard(self, paths, monkeypatch):
        ShardSource(paths)
        monkeypatch.setattr(index_sidecar.np, "load", lambda *a, **k: pytest.fail("full sidecar"))
        assert ShardSource(paths).counts.tolist() == [5, 3, 4]

    def test_in_parallel_and_in_order(self):
        barrier = threading.Barrier(4, timeout=20)

        def load(path):
            barrier.wait()
            return path

        paths = [str(i) for i in range(64)]
        assert sources._load_all(load, paths) == paths
        assert sources._load_all(load, []) == []

    @pytest.mark.parametrize("terminal", [True, False])
    def test_a_bar_after_a_while_on_a_terminal(self, monkeypatch, capsys, terminal):
        monkeypatch.setattr(sources, "_QUIET_S", 0.0)
        monkeypatch.setattr(sources.sys.stderr, "isatty", lambda: terminal)
        sources._load_all(lambda path: time.sleep(0.001), [str(i) for i in range(50)])
        assert ("index of shards" in capsys.readouterr().err) == terminal

    def test_many_without_an_index_are_told_once(self, paths, monkeypatch, capsys):
        monkeypatch.setattr(sources, "_MANY", 2)
        told = "indexing up to 3 shards on first use; clipkit-data index does it ahead"
        for expected in (1, 0):
            ShardSource(paths)
            assert capsys.readouterr().err.count(told) == expected
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("WORLD_SIZE", "2")
        for path in paths:
            os.unlink(f"{path}.idx.npz")
        ShardSource(paths)
        assert capsys.readouterr().err == ""

    def test_the_first_error_ends_it(self):
        def load(path):
            raise DataError(path)

        with pytest.raises(DataError):
            sources._load_all(load, [str(i) for i in range(5000)])
