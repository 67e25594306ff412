"""Members grouped into samples; a sidecar that is reused while fresh; losses that stay known."""

import os
import tarfile

import numpy as np
import pytest

from clipkit.data import tar_index
from clipkit.data.index_sidecar import sidecar_places, stamp_of, write_sidecar
from clipkit.data.tar_index import (
    build_index,
    fresh_head,
    index_fields,
    load_index,
    load_indexes,
    manifest_hash,
)
from clipkit.errors import DataError
from tests.fixtures_shards import sample_members, tar_bytes, write_tar

MEMBERS = [(f"{i:03d}.{e}", bytes([i]) * (100 + i)) for i in range(5) for e in ("jpg", "txt")]
MEMBER = 1024  # bytes of each in the tar


def contents(index):
    """(key, extension, bytes) of every member, read through the index."""
    out = []
    with open(index.path, "rb") as file:
        for sample, key in enumerate(index.keys):
            for m in range(index.starts[sample], index.starts[sample + 1]):
                file.seek(index.offsets[m])
                extension = index.extensions[index.member_extension[m]]
                out.append((str(key), extension, file.read(index.sizes[m])))
    return out


def index_of(path, data):
    path.write_bytes(data)
    return build_index(str(path))


def damaged(*headers, data=None):
    """The tar of MEMBERS with the headers of these members broken."""
    data = bytearray(data or tar_bytes(MEMBERS))
    for member in headers:
        data[member * MEMBER + 20] ^= 0xFF
    return bytes(data)


@pytest.fixture
def shard(tmp_path):
    return tmp_path / "a.tar"


@pytest.fixture
def scans(monkeypatch):
    """Paths that were scanned."""
    counted = []
    build = tar_index.build_index
    monkeypatch.setattr(tar_index, "build_index", lambda p: counted.append(p) or build(p))
    return counted


class TestGrouping:
    """Samples are runs of one key."""

    def test_key_is_the_path_up_to_the_first_dot(self, shard):
        names = ["p/1.jpg", "p/1.seg.png", "p/1.TXT", "q/1.jpg", "readme", "2.jpg"]
        index = build_index(str(write_tar(shard, [(n, b"x") for n in names])))
        assert index.keys.tolist() == ["p/1", "q/1", "2"] and len(index) == 3
        assert np.diff(index.starts).tolist() == [3, 1, 1]
        assert set(index.extensions) == {"jpg", "seg.png", "txt"}
        assert index.member(0, ("txt", "png"))[0] == "txt"
        assert index.member(1, ("txt",)) is None

    def test_hidden_files_are_no_samples_and_split_none(self, shard):
        names = ["._1.jpg", "1.jpg", "p/.DS_Store", "._1.txt", "1.txt"]
        index = build_index(str(write_tar(shard, [(n, n.encode()) for n in names])))
        assert contents(index) == [("1", "jpg", b"1.jpg"), ("1", "txt", b"1.txt")]

    def test_a_repeated_extension_begins_a_sample(self, shard):
        names = ["0.jpg", "1.jpg", "1.txt", "1.JPG", "1.txt", "1.txt", "2.txt"]
        index = build_index(str(write_tar(shard, [(n, b"x") for n in names])))
        found = [[e for e, _, _ in index.members(i)] for i in range(len(index))]
        assert found == [["jpg"], ["jpg", "txt"], ["jpg", "txt"], ["txt"], ["txt"]]
        assert index.keys.tolist() == ["0", "1", "1", "1", "2"] and index.whole
        assert index.notes == "2 samples share the key of their neighbour"

    def test_keys_one_by_one_and_all_at_once(self, shard):
        names = ["é/a.jpg", "b.jpg", "🙂.jpg", "c/d.jpg"]
        index = build_index(str(write_tar(shard, [(n, b"x") for n in names])))
        assert [index.key(i) for i in range(4)] == index.keys.tolist() == [n[:-4] for n in names]

    def test_one_key_of_many_is_cut_out_without_splitting_all(self, shard, monkeypatch):
        index = build_index(str(write_tar(shard, [(f"{i}.jpg", b"") for i in range(9)])))
        monkeypatch.setattr(type(index), "keys", property(lambda self: pytest.fail("all keys")))
        assert index.key(8) == "8"

    def test_no_sample_at_all(self, shard):
        index = build_index(str(write_tar(shard, [])))
        assert len(index) == 0 and index.keys.tolist() == [] and index.whole

    def test_missing_shard_is_named(self, tmp_path):
        for load in (load_index, fresh_head, build_index):
            with pytest.raises(DataError, match=r"gone\.tar' cannot be read: No such file"):
                load(str(tmp_path / "gone.tar"))


class TestDamage:
    """A sample with a member that may be lost is left out; all others stay."""

    def keys(self, *lost):
        return [f"{i:03d}" for i in range(5) if i not in lost]

    @pytest.mark.parametrize(
        ("headers", "lost"),
        [((4,), (2,)), ((5,), (2,)), ((0,), (0,)), ((9,), (4,)), ((4, 7), (2, 3)), ((4, 5), (2,))],
    )
    def test_one_broken_header_costs_its_sample(self, shard, headers, lost):
        index = index_of(shard, damaged(*headers))
        assert index.keys.tolist() == self.keys(*lost) and not index.whole
        whole = [c for c in contents(index_of(shard, tar_bytes(MEMBERS))) if c[0] in index.keys]
        assert contents(index_of(shard, damaged(*headers))) == whole
        assert "broken header" in index.damage

    def test_what_is_left_out_is_told(self, shard):
        assert index_of(shard, damaged(4)).damage.endswith(
            "1 incomplete samples beside it left out"
        )

    def test_an_optional_member_may_be_the_lost_one(self, shard):
        members = [*MEMBERS[:6], ("002.json", b"{}"), *MEMBERS[6:]]
        # The json of 002 is lost; another one shows that there may have been one.
        members.append(("004.json", b"{}"))
        kept = index_of(shard, damaged(6, data=tar_bytes(members))).keys.tolist()
        assert kept == ["000", "001", "004"]  # 003, behind the gap, could have lost one as well

    def test_samples_far_from_the_gap_may_lack_members(self, shard):
        members = [*MEMBERS[:8], ("004.jpg", b"alone")]
        index = index_of(shard, damaged(0, data=tar_bytes(members)))
        assert index.keys.tolist() == ["001", "002", "003", "004"]

    def test_members_around_a_gap_are_one_sample_if_they_share_its_key(self, shard):
        members = [(f"{i}.{e}", b"x") for i in range(3) for e in ("a", "b", "c")]
        index = index_of(shard, damaged(4, data=tar_bytes(members)))
        assert index.keys.tolist() == ["0", "2"]

    def test_a_lost_name_splits_a_sample(self, shard):
        # ustar holds "n?.jpg" where the pax header with the true name is lost
        members = [("a.jpg", b"1"), ("a.txt", b"2"), ("né.jpg", b"3"), ("né.txt", b"4")]
        data = tar_bytes(members, tarfile.PAX_FORMAT)
        index = index_of(shard, damaged(2, data=data))
        assert index.keys.tolist() == ["a"] and "2 incomplete samples" in index.damage

    def test_cut_after_the_image_drops_the_torn_sample(self, shard):
        index = index_of(shard, tar_bytes(MEMBERS)[: 5 * MEMBER + 530])
        assert index.keys.tolist() == ["000", "001"] and "cut short inside" in index.damage

    def test_cut_at_a_boundary_is_no_damage(self, shard):
        index = index_of(shard, tar_bytes(MEMBERS)[: 4 * MEMBER])
        assert index.damage == "" and not index.end_mark and len(index) == 2


class TestExpected:
    """What a shard held when it was whole is remembered after it is damaged."""

    def after(self, shard, *contents):
        for data in contents:
            shard.write_bytes(data)
            index = load_index(str(shard))
        return index

    whole = tar_bytes(MEMBERS)

    @pytest.mark.parametrize(
        ("data", "held"),
        [
            (damaged(4), 4),
            (tar_bytes(MEMBERS)[: 4 * MEMBER], 2),
            (tar_bytes(MEMBERS)[: 5 * MEMBER + 530], 2),
            (b"", 0),
            (b"<html>".ljust(2048), 0),
        ],
    )
    def test_known_from_the_earlier_index(self, shard, data, held):
        index = self.after(shard, self.whole, data)
        assert len(index) == held and index.expected == 5
        assert load_index(str(shard)).expected == 5  # from the new sidecar
        assert fresh_head(str(shard)).expected == 5

    def test_damaged_twice(self, shard):
        index = self.after(shard, self.whole, damaged(4), damaged(4, 8))
        assert len(index) == 3 and index.expected == 5

    def test_end_mark_alone_lost(self, shard):
        index = self.after(shard, self.whole, self.whole[: 10 * MEMBER])
        assert index.expected == 0 and not index.whole

    def test_a_whole_tar_of_fewer_samples_was_written_anew(self, shard):
        index = self.after(shard, self.whole, tar_bytes(MEMBERS[:4]))
        assert index.expected == 0 and len(index) == 2

    def test_mended_and_forgotten(self, shard):
        assert self.after(shard, self.whole, damaged(4), self.whole + bytes(512)).expected == 0

    def test_damage_in_place_keeps_a_fresh_index(self, shard):
        self.after(shard, self.whole)
        stat = shard.stat()
        shard.write_bytes(damaged(4))
        os.utime(shard, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        index = load_index(str(shard))
        assert len(index) == 5 and index.whole


class TestLoading:
    """The index beside the shard: reused while fresh, rebuilt otherwise."""

    @pytest.fixture
    def path(self, shard):
        write_tar(shard, sample_members(0, 3))
        return str(shard)

    def test_reused(self, path, scans):
        first, second = load_index(path), load_index(path)
        assert len(scans) == 1
        assert contents(first) == contents(second) and first.damage == second.damage
        assert first.keys.tolist() == second.keys.tolist() and first.extensions == second.extensions
        assert first.head == second.head == fresh_head(path) and len(scans) == 1

    def test_there_is_no_head_without_a_sidecar(self, path, scans):
        assert fresh_head(path) is None and not scans
        assert len(load_index(path)) == 3 and fresh_head(path).count == 3

    def test_rebuilt_when_the_shard_changes(self, path, shard, scans):
        load_index(path)
        write_tar(shard, sample_members(0, 40))
        assert fresh_head(path) is None
        assert len(load_index(path)) == 40 and len(scans) == 2

    def test_a_shard_written_during_the_scan_is_scanned_again(self, path, shard, monkeypatch):
        build = tar_index.build_index

        def slow(scanned):
            index = build(scanned)
            write_tar(shard, sample_members(0, 9))
            return index

        monkeypatch.setattr(tar_index, "build_index", slow)
        load_index(path)
        monkeypatch.setattr(tar_index, "build_index", build)
        assert len(load_index(path)) == 9

    def test_without_write_nothing_is_left_behind(self, path, shard):
        load_index(path, write=False)
        assert [p.name for p in shard.parent.iterdir()] == ["a.tar"]

    def test_a_sidecar_of_another_shard_of_that_stamp_is_refused_by_its_checksum(self, path, scans):
        index = load_index(path)
        beside, _ = sidecar_places(path)
        fields = index_fields(index)
        fields.members["sizes"] = index.sizes - 1
        write_sidecar(path, fields, stamp_of(path))
        assert beside.exists() and contents(load_index(path)) == contents(index)
        assert len(scans) == 2

    def test_many_at_once_keep_their_order(self, tmp_path):
        paths = [str(write_tar(tmp_path / f"{i}.tar", sample_members(0, i + 1))) for i in range(20)]
        assert [len(i) for i in load_indexes(paths)] == list(range(1, 21))
        assert load_indexes([]) == []


def test_manifest_hash_tells_data_sets_apart_but_not_places(tmp_path):
    def manifest(*indexes):
        return manifest_hash([i.path for i in indexes], [i.head for i in indexes])

    members = sample_members(0, 3)
    a = build_index(str(write_tar(tmp_path / "x" / "a.tar", members)))
    moved = build_index(str(write_tar(tmp_path / "y" / "a.tar", members)))
    renamed = build_index(str(write_tar(tmp_path / "b.tar", members)))
    shorter = build_index(str(write_tar(tmp_path / "z" / "a.tar", members[:4])))
    other = build_index(
        str(write_tar(tmp_path / "o" / "a.tar", [*members[:-1], ("000002.cap", members[-1][1])]))
    )
    assert manifest(a) == manifest(moved)
    sets = ([a], [renamed], [shorter], [other], [a, renamed], [renamed, a])
    assert len({manifest(*s) for s in sets}) == 6
