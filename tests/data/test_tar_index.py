"""Where members lie, in every dialect of tar; damage is told, never passed over."""

import io
import pickle
import tarfile

import numpy as np
import pytest

from clipkit.data import tar_index
from clipkit.data.tar_index import build_index, load_index, load_indexes, manifest_hash
from clipkit.errors import DataError
from tests.fixtures_shards import sample_members, tar_bytes, write_tar

MEMBERS = [(f"{i:03d}.{e}", bytes([i]) * (100 + i)) for i in range(5) for e in ("jpg", "txt")]


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


def raw_header(name=b"a.txt", size=b"0" * 11 + b"\0", kind=b"0", checksum=None):
    """A ustar header with fields as given and a right checksum."""
    header = bytearray(512)
    header[: len(name)] = name
    header[124 : 124 + len(size)] = size
    header[156:157] = kind
    header[257:265] = b"ustar\x0000"
    header[148:156] = b" " * 8
    header[148:156] = checksum or f"{sum(header):06o}\0 ".encode()
    return bytes(header)


def index_of(path, data):
    path.write_bytes(data)
    return build_index(str(path))


@pytest.fixture
def shard(tmp_path):
    return tmp_path / "a.tar"


@pytest.mark.parametrize(
    "tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
@pytest.mark.parametrize("prefix", ["", "./", "deep/er/", "x" * 90 + "/" + "y" * 60 + "/"])
def test_dialects_and_long_names(shard, tar_format, prefix):
    members = [(prefix + name, data) for name, data in MEMBERS]
    index = build_index(str(write_tar(shard, members, tar_format)))
    assert index.damage == ""
    assert contents(index) == [(prefix + n[:3], n[4:], d) for n, d in MEMBERS]


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_beyond_ustar(shard, tar_format):
    name = "z" * 300 + "é"
    index = build_index(str(write_tar(shard, [(f"{name}.txt", b"1"), ("b.txt", b"2")], tar_format)))
    assert contents(index) == [(name, "txt", b"1"), ("b", "txt", b"2")]


def test_pax_size_and_foreign_records(shard):
    info = tarfile.TarInfo("a.txt")
    info.size, info.pax_headers = 3, {"comment": "x", "size": "3"}
    out = io.BytesIO()
    with tarfile.open(
        fileobj=out, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"g": "1"}
    ) as tar:
        tar.addfile(info, io.BytesIO(b"abc"))
        tar.addfile(tarfile.TarInfo("b.txt"))
    assert contents(index_of(shard, out.getvalue())) == [("a", "txt", b"abc"), ("b", "txt", b"")]


def test_base_256_size(shard):
    size = b"\x80" + (3).to_bytes(11, "big")
    data = raw_header(size=size) + b"abc".ljust(512, b"\0") + bytes(1024)
    assert contents(index_of(shard, data)) == [("a", "txt", b"abc")]


def test_only_regular_files_count(shard):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind in (
            ("d.jpg", tarfile.DIRTYPE),
            ("l.jpg", tarfile.SYMTYPE),
            ("h.jpg", tarfile.LNKTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a.txt"
            tar.addfile(info)
        info = tarfile.TarInfo("a.txt")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"1"))
    assert contents(index_of(shard, out.getvalue())) == [("a", "txt", b"1")]


def test_samples_are_runs_of_a_key_up_to_the_first_dot(shard):
    names = ["p/1.jpg", "p/1.seg.png", "p/1.TXT", "q/1.jpg", "readme", "2.jpg"]
    index = build_index(str(write_tar(shard, [(n, b"x") for n in names])))
    assert index.keys.tolist() == ["p/1", "q/1", "2"]
    assert np.diff(index.starts).tolist() == [3, 1, 1]
    assert set(index.extensions) == {"jpg", "seg.png", "txt"}
    assert index.member(0, ("txt", "png"))[0] == "txt"
    assert index.member(1, ("txt",)) is None


def test_hidden_files_are_no_samples_and_split_none(shard):
    names = ["._1.jpg", "1.jpg", "p/.DS_Store", "._1.txt", "1.txt"]
    index = build_index(str(write_tar(shard, [(n, n.encode()) for n in names])))
    assert contents(index) == [("1", "jpg", b"1.jpg"), ("1", "txt", b"1.txt")]


class TestDamage:
    """`damage` says what is wrong; the samples before it are kept."""

    data = tar_bytes(MEMBERS)
    member = 1024  # header and one block of content

    def test_header_bytes_flipped_in_the_middle(self, shard):
        data = bytearray(self.data)
        data[4 * self.member + 20] ^= 0xFF
        index = index_of(shard, data)
        assert index.damage == f"broken header at byte {4 * self.member}" and len(index) == 2

    def test_header_wiped_to_zeros_in_the_middle(self, shard):
        data = bytearray(self.data)
        data[4 * self.member : 4 * self.member + 512] = bytes(512)
        index = index_of(shard, data)
        assert "data behind the end" in index.damage and len(index) == 2

    def test_tail_never_written(self, shard):
        index = index_of(shard, self.data[: 4 * self.member] + bytes(4 << 20))
        assert "behind the end" in index.damage and len(index) == 2

    def test_payload_flips_are_the_decoders_business(self, shard):
        data = bytearray(self.data)
        data[4 * self.member + 600] ^= 0xFF
        index = index_of(shard, data)
        assert index.damage == "" and len(index) == 5

    def test_cut_inside_a_member(self, shard):
        index = index_of(shard, self.data[: 4 * self.member + 530])
        assert index.damage == "cut short inside '002.jpg'" and len(index) == 2

    def test_cut_inside_a_header(self, shard):
        index = index_of(shard, self.data[: 4 * self.member + 100])
        assert index.damage == "cut short" and len(index) == 2

    def test_cut_inside_the_first_header(self, shard):
        assert index_of(shard, self.data[:100]).damage == "cut short"

    def test_cut_at_a_boundary_looks_like_a_missing_end_mark(self, shard):
        assert index_of(shard, self.data[: 4 * self.member]).damage == ""

    def test_missing_end_of_archive_blocks(self, shard):
        index = index_of(shard, self.data[: 10 * self.member])
        assert index.damage == "" and len(index) == 5

    def test_cut_inside_the_padding_of_a_member(self, shard):
        index = index_of(shard, self.data[: 4 * self.member - 300])
        assert index.damage == "cut short" and len(index) == 2

    @pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    @pytest.mark.parametrize("keep", [512 + 50, 1024])
    def test_cut_in_or_after_an_extended_header(self, shard, tar_format, keep):
        head = tar_bytes([("a.txt", b"1")])[:1024]
        data = head + tar_bytes([("z" * 300 + ".txt", b"2")], tar_format)[:keep]
        index = index_of(shard, data)
        assert index.damage == "cut short" and len(index) == 1

    @pytest.mark.parametrize(
        ("data", "what"),
        [
            (b"", "empty file"),
            (b"<!DOCTYPE html>".ljust(2000), "not a tar file"),
            (b"\x1f\x8b" * 600, "not a tar"),
        ],
    )
    def test_no_tar_at_all(self, shard, data, what):
        index = index_of(shard, data)
        assert what in index.damage and len(index) == 0

    @pytest.mark.parametrize(
        "size", [b"zzz\0", b"-0000001000\0", b"-7777777777\0", b"\xff" * 12, b"\x80" + b"\xff" * 11]
    )
    def test_crafted_sizes(self, shard, size):
        data = tar_bytes([("a.txt", b"1")])[:1024] + raw_header(size=size) + bytes(1024)
        index = index_of(shard, data)
        assert index.damage and len(index) == 1

    @pytest.mark.parametrize("record", [b"size=x", b"size=-1024", b"size=99999999999999999999"])
    def test_crafted_pax_sizes(self, shard, record):
        record = b"%d %s\n" % (len(record) + 4 if len(record) + 4 > 9 else len(record) + 3, record)
        head = raw_header(b"pax", f"{len(record):011o}\0".encode(), b"x")
        data = (
            tar_bytes([("a.txt", b"1")])[:1024]
            + head
            + record.ljust(512, b"\0")
            + raw_header()
            + bytes(1024)
        )
        index = index_of(shard, data)
        assert index.damage and len(index) == 1

    def test_oversized_extended_header(self, shard):
        data = raw_header(b"x", f"{1 << 20:011o}\0".encode(), b"L") + bytes(1 << 20)
        assert "oversized extended header" in index_of(shard, data).damage

    def test_folders_only_without_an_end_mark_are_whole(self, shard):
        index = index_of(shard, raw_header(b"d/", kind=b"5"))
        assert index.damage == "" and len(index) == 0

    def test_empty_archive_is_whole(self, shard):
        index = index_of(shard, tar_bytes([]))
        assert index.damage == "" and len(index) == 0


def test_missing_shard_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.tar' cannot be read: No such file"):
        load_index(str(tmp_path / "gone.tar"))


class TestSidecar:
    """The index beside the shard: reused while fresh, rebuilt otherwise, never unpickled."""

    @pytest.fixture
    def path(self, shard):
        write_tar(shard, sample_members(0, 3))
        return str(shard)

    @pytest.fixture
    def scans(self, monkeypatch):
        counted = []
        build = tar_index.build_index
        monkeypatch.setattr(tar_index, "build_index", lambda p: counted.append(p) or build(p))
        return counted

    def test_reused(self, path, scans):
        first, second = load_index(path), load_index(path)
        assert len(scans) == 1
        assert contents(first) == contents(second) and first.damage == second.damage
        assert first.keys.tolist() == second.keys.tolist() and first.extensions == second.extensions

    def test_rebuilt_when_the_shard_changes(self, path, shard, scans):
        load_index(path)
        write_tar(shard, sample_members(0, 40))
        assert len(load_index(path)) == 40 and len(scans) == 2

    @pytest.mark.parametrize(
        "content", [b"", b"PK\x03\x04", b"not a zip", pickle.dumps([1]), b"\x93NUMPY\x01"]
    )
    def test_corrupt_one_is_rebuilt(self, path, shard, scans, content):
        load_index(path)
        sidecar = shard.with_name("a.tar.idx.npz")
        sidecar.write_bytes(content)
        assert len(load_index(path)) == 3
        assert len(load_index(path)) == 3
        assert len(scans) == 2

    def test_any_flipped_or_missing_byte_changes_nothing(self, path, shard):
        expected = contents(load_index(path))
        sidecar = shard.with_name("a.tar.idx.npz")
        whole = sidecar.read_bytes()
        for i in range(0, len(whole), 13):
            damaged = bytearray(whole)
            damaged[i] ^= 0xFF
            for content in (bytes(damaged), whole[:i]):
                sidecar.write_bytes(content)
                assert contents(load_index(path)) == expected, i

    def test_never_unpickles(self, path, shard, tmp_path):
        canary = tmp_path / "canary"

        class Evil:
            def __reduce__(self):
                return open, (str(canary), "w")

        load_index(path)
        sidecar = shard.with_name("a.tar.idx.npz")
        with np.load(sidecar) as f:
            fields = dict(f)
        fields["keys"] = np.array([Evil()], dtype=object)
        np.savez(sidecar, **fields)
        assert len(load_index(path)) == 3
        assert not canary.exists()

    def test_read_only_folder_uses_the_cache(self, path, shard, scans, monkeypatch, tmp_path):
        monkeypatch.delenv("CLIPKIT_CACHE", raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr(tar_index.os, "access", lambda *a: False)
        load_index(path), load_index(path)
        assert len(scans) == 1 and not shard.with_name("a.tar.idx.npz").exists()
        assert len(list((tmp_path / "cache").rglob("*.npz"))) == 1

    def test_full_disk_costs_a_rescan_only(self, path, shard, scans, monkeypatch):
        def full(*args):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(tar_index.os, "replace", full)
        load_index(path), load_index(path)
        assert len(scans) == 2 and [p.name for p in shard.parent.iterdir()] == ["a.tar"]

    def test_many_at_once_keep_their_order(self, tmp_path):
        paths = [str(write_tar(tmp_path / f"{i}.tar", sample_members(0, i + 1))) for i in range(20)]
        assert [len(i) for i in load_indexes(paths)] == list(range(1, 21))
        assert load_indexes([]) == []


def test_manifest_hash_tells_data_sets_apart_but_not_places(tmp_path):
    members = sample_members(0, 3)
    a = build_index(str(write_tar(tmp_path / "x" / "a.tar", members)))
    moved = build_index(str(write_tar(tmp_path / "y" / "a.tar", members)))
    renamed = build_index(str(write_tar(tmp_path / "b.tar", members)))
    shorter = build_index(str(write_tar(tmp_path / "z" / "a.tar", members[:4])))
    assert manifest_hash([a]) == manifest_hash([moved])
    assert (
        len({manifest_hash(s) for s in ([a], [renamed], [shorter], [a, renamed], [renamed, a])})
        == 5
    )
