"""Members of every dialect of tar; damage is told, never passed over, and costs no more than it."""

import io
import tarfile

import numpy as np
import pytest

from clipkit.data.tar_scan import BLOCK, checksum_ok, is_unsafe, scan_tar
from tests.fixtures_shards import tar_bytes, write_tar

MEMBERS = [(f"{i:03d}.{e}", bytes([i]) * (100 + i)) for i in range(5) for e in ("jpg", "txt")]
EXTENDED = [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def contents(path, scan):
    """[(name, bytes)] of every member, read where the scan says it lies."""
    data = path.read_bytes()
    return [(n, data[o : o + s]) for n, o, s in zip(scan.names, scan.offsets, scan.sizes)]


def raw_header(name=b"a.txt", size=b"0" * 11 + b"\0", kind=b"0"):
    """A ustar header with fields as given and a right checksum."""
    header = bytearray(BLOCK)
    header[: len(name)] = name
    header[124 : 124 + len(size)] = size
    header[156:157] = kind
    header[257:265] = b"ustar\x0000"
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return bytes(header)


@pytest.fixture
def shard(tmp_path):
    return tmp_path / "a.tar"


def scan_of(shard, data):
    shard.write_bytes(data)
    return scan_tar(str(shard))


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, *EXTENDED])
@pytest.mark.parametrize("prefix", ["", "./", "deep/er/", "x" * 90 + "/" + "y" * 60 + "/"])
def test_dialects_and_long_names(shard, tar_format, prefix):
    members = [(prefix + name, data) for name, data in MEMBERS]
    scan = scan_tar(str(write_tar(shard, members, tar_format)))
    assert contents(shard, scan) == members
    assert scan.damage == "" and scan.gaps == [] and scan.end_mark


@pytest.mark.parametrize("tar_format", EXTENDED)
def test_names_beyond_ustar(shard, tar_format):
    members = [("z" * 300 + "é.txt", b"1"), ("b.txt", b"2")]
    assert contents(shard, scan_tar(str(write_tar(shard, members, tar_format)))) == members


@pytest.mark.parametrize("tar_format", EXTENDED)
def test_a_name_longer_than_any_path_is_damage(shard, tar_format):
    members = [("a.txt", b"1"), ("z" * 5000 + ".txt", b"2"), ("c.txt", b"3")]
    scan = scan_tar(str(write_tar(shard, members, tar_format)))
    assert "broken header" in scan.damage
    assert all(len(name) <= 4096 for name in scan.names) and scan.names[-1] == "c.txt"


def test_pax_size_and_foreign_records(shard):
    info = tarfile.TarInfo("a.txt")
    info.size, info.pax_headers = 3, {"comment": "x", "size": "3"}
    out = io.BytesIO()
    with tarfile.open(
        fileobj=out, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"g": "1"}
    ) as tar:
        tar.addfile(info, io.BytesIO(b"abc"))
        tar.addfile(tarfile.TarInfo("b.txt"))
    scan = scan_of(shard, out.getvalue())
    assert contents(shard, scan) == [("a.txt", b"abc"), ("b.txt", b"")]


def test_base_256_size(shard):
    size = b"\x80" + (3).to_bytes(11, "big")
    scan = scan_of(shard, raw_header(size=size) + b"abc".ljust(512, b"\0") + bytes(1024))
    assert contents(shard, scan) == [("a.txt", b"abc")]


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
    assert contents(shard, scan_of(shard, out.getvalue())) == [("a.txt", b"1")]


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"\0", b"Z"])
@pytest.mark.parametrize("name", [b"d.txt", b"d/"])
def test_a_size_claimed_by_any_kind_is_taken_as_tarfile_takes_it(shard, kind, name):
    whole = tar_bytes([(f"{i}.txt", b"x") for i in range(3)])
    scan = scan_of(shard, whole[:1024] + raw_header(name, b"00000002000\0", kind) + whole[1024:])
    with tarfile.open(shard) as tar:
        theirs = [m.name for m in tar if m.isreg()]
    assert scan.names == theirs and scan.damage == ""
    told = {b"7": "", b"Z": "1 members of unknown kinds"}
    if kind == b"\0" and name == b"d.txt":
        assert scan.notes == ""
    else:
        assert scan.notes.startswith(told.get(kind, "1 links, folders or devices claim a size"))


def test_names_that_are_no_utf8_stay_apart(shard):
    names = ["红", "蓝", "绿", "黄", "黑"]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT, encoding="gbk") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(f"{name}.txt"))
    found = scan_of(shard, out.getvalue()).names
    assert len(set(found)) == 5 and found[0] == "\\xba\\xec.txt"
    assert not any(map(is_unsafe, found)) and "".join(found).encode()


def test_the_long_target_of_a_link_does_not_hide_its_name(shard):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        info = tarfile.TarInfo("z" * 200 + ".txt")
        info.type, info.linkname = tarfile.SYMTYPE, "y" * 200
        tar.addfile(info)
        tar.addfile(tarfile.TarInfo("a.txt"))
    scan = scan_of(shard, out.getvalue())
    assert scan.names == ["a.txt"] and scan.damage == scan.notes == ""


@pytest.mark.parametrize("name", ["../a.jpg", "a/../../b.txt", "/etc/passwd", "..\\a", "\\a", ".."])
def test_names_that_point_out(name: str) -> None:
    assert is_unsafe(name)


@pytest.mark.parametrize("name", ["a.jpg", "a/b.txt", "a..b.jpg", "..a/b.jpg", "a/...jpg", ""])
def test_names_that_stay(name: str) -> None:
    assert not is_unsafe(name)


def test_agrees_with_tarfile_on_random_archives(shard):
    rng = np.random.default_rng(0)
    for tar_format in (tarfile.USTAR_FORMAT, *EXTENDED):
        members = [
            (f"{'d' * rng.integers(1, 60)}/{i}.bin", rng.bytes(int(rng.integers(0, 3000))))
            for i in range(60)
        ]
        write_tar(shard, members, tar_format)
        with tarfile.open(shard) as tar:
            theirs = [(m.name, m.offset_data, m.size) for m in tar]
        scan = scan_tar(str(shard))
        assert list(zip(scan.names, scan.offsets, scan.sizes)) == theirs


def test_checksum_is_the_sum_of_bytes():
    header = raw_header()
    assert checksum_ok(header)
    for i in [*range(0, 148, 7), *range(156, 512, 11)]:
        for bit in range(8):
            damaged = bytearray(header)
            damaged[i] ^= 1 << bit
            assert not checksum_ok(bytes(damaged))
    assert not checksum_ok(header[:148] + b"zzzzzz\0 " + header[156:])
    full = raw_header(b"\xff" * 100)  # a sum of its own size class
    assert checksum_ok(full)


class TestDamage:
    """`damage` says what is wrong; every member with a sound header is kept."""

    data = tar_bytes(MEMBERS)
    member = 1024  # header and one block of content

    def names(self, *lost):
        return [name for i, (name, _) in enumerate(MEMBERS) if i not in lost]

    def test_header_bytes_flipped_in_the_middle(self, shard):
        data = bytearray(self.data)
        data[4 * self.member + 20] ^= 0xFF
        scan = scan_of(shard, data)
        assert scan.damage == (
            "broken header at byte 4096, 1024 bytes skipped; 5 members behind the last one"
        )
        assert scan.names == self.names(4) and scan.gaps == [4096] and scan.end_mark

    def test_first_header_flipped(self, shard):
        data = bytearray(self.data)
        data[3] ^= 1
        scan = scan_of(shard, data)
        assert scan.damage.startswith("broken header at byte 0")
        assert scan.names == self.names(0)

    @pytest.mark.parametrize("field", [b"77777777777\0", b"zzz\0", b"\xff" * 12])
    def test_size_field_with_a_right_checksum(self, shard, field):
        data = bytearray(self.data)
        data[4096:4608] = raw_header(b"002.jpg", field)
        scan = scan_of(shard, data)
        assert scan.names == self.names(4) and "broken header at byte 4096," in scan.damage

    def test_several_places(self, shard):
        data = bytearray(self.data)
        for i in range(0, 10, 2):
            data[i * self.member] ^= 1
        scan = scan_of(shard, data)
        assert scan.names == self.names(0, 2, 4, 6, 8) and len(scan.gaps) == 5
        assert scan.damage.count("broken header") == 3 and scan.damage.endswith(
            "; 2 more places; 1 members behind the last one"
        )

    def test_header_wiped_to_zeros_in_the_middle(self, shard):
        data = bytearray(self.data)
        data[4 * self.member : 4 * self.member + 512] = bytes(512)
        scan = scan_of(shard, data)
        assert "data behind the end-of-archive mark at byte 4096" in scan.damage
        assert scan.names == self.names(4) and scan.end_mark

    def test_content_like_a_header_without_magic_is_skipped(self, shard):
        old = bytearray(raw_header(b"in.txt"))
        old[257:265] = bytes(8)
        old[148:156] = b" " * 8
        old[148:156] = f"{sum(old):06o}\0 ".encode()
        data = bytearray(tar_bytes([("a.txt", b"1"), ("b.txt", bytes(old)), ("c.txt", b"3")]))
        data[1024] ^= 1
        assert scan_of(shard, data).names == ["a.txt", "c.txt"]

    @pytest.mark.parametrize("skipped", [1, 17, 40, 9000])
    def test_a_gap_of_any_length(self, shard, skipped):
        members = [("a.txt", b"1"), ("b.bin", b"x" * 512 * skipped), ("c.txt", b"3")]
        data = bytearray(tar_bytes(members))
        data[1024] ^= 1
        scan = scan_of(shard, data)
        assert contents(shard, scan) == [("a.txt", b"1"), ("c.txt", b"3")]

    @pytest.mark.parametrize("tar_format", EXTENDED)
    def test_a_long_name_whose_own_header_is_lost_is_no_member(self, shard, tar_format):
        data = bytearray(
            tar_bytes([("a.txt", b"1"), ("z" * 300 + ".txt", b"2"), ("c.txt", b"3")], tar_format)
        )
        data[1024] ^= 1
        assert scan_of(shard, data).names == ["a.txt", "c.txt"]

    inner = tar_bytes([(f"in{i}.txt", b"no") for i in range(3)])

    @pytest.mark.parametrize("at", [5, 124])  # name and size
    def test_members_of_a_tar_inside_a_member_are_no_members(self, shard, at):
        data = bytearray(tar_bytes([("a.txt", b"1"), ("b.tar", self.inner), ("c.txt", b"3")]))
        data[1024 + at] = 0xFF
        scan = scan_of(shard, data)
        assert scan.names == ["a.txt", "c.txt"] and scan.gaps == [1024] and scan.end_mark
        assert ", 3 members of a tar inside it left out; 1 members behind" in scan.damage

    def test_an_end_mark_behind_the_damaged_member_leaves_out_nothing(self, shard):
        data = bytearray(self.data)
        data[2 * self.member] ^= 1
        data[8 * self.member : 9 * self.member] = bytes(self.member)
        scan = scan_of(shard, data)
        assert scan.names == self.names(2, 8) and len(scan.gaps) == 2

    def test_tail_never_written(self, shard):
        scan = scan_of(shard, self.data[: 4 * self.member] + bytes(4 << 20))
        assert "behind the end" in scan.damage and scan.names == self.names(*range(4, 10))
        assert not scan.end_mark

    def test_payload_flips_are_the_decoders_business(self, shard):
        data = bytearray(self.data)
        data[4 * self.member + 600] ^= 0xFF
        scan = scan_of(shard, data)
        assert scan.damage == "" and len(scan.names) == 10

    @pytest.mark.parametrize(
        ("cut", "what"),
        [
            (4 * 1024 + 530, "cut short inside '002.jpg'"),
            (4 * 1024 + 100, "cut short"),
            (4 * 1024 - 300, "cut short"),  # in the padding
        ],
    )
    def test_cut(self, shard, cut, what):
        scan = scan_of(shard, self.data[:cut])
        assert scan.damage == what and scan.names == self.names(*range(4, 10))
        assert not scan.end_mark

    def test_cut_inside_the_first_header(self, shard):
        assert scan_of(shard, self.data[:100]).damage == "cut short"

    def test_cut_inside_the_first_member(self, shard):
        scan = scan_of(shard, tar_bytes([("a.txt", b"x" * 3000)])[:2000])
        assert scan.damage == "cut short inside 'a.txt'"

    @pytest.mark.parametrize("members", [4, 10])
    def test_cut_at_a_boundary_is_a_missing_end_mark(self, shard, members):
        scan = scan_of(shard, self.data[: members * self.member])
        assert scan.damage == "" and len(scan.names) == members and not scan.end_mark

    @pytest.mark.parametrize("tar_format", EXTENDED)
    @pytest.mark.parametrize("keep", [512 + 50, 1024])
    def test_cut_in_or_after_an_extended_header(self, shard, tar_format, keep):
        head = tar_bytes([("a.txt", b"1")])[:1024]
        data = head + tar_bytes([("z" * 300 + ".txt", b"2")], tar_format)[:keep]
        scan = scan_of(shard, data)
        assert scan.damage == "cut short" and scan.names == ["a.txt"]

    @pytest.mark.parametrize(
        ("data", "what"),
        [
            (b"", "empty file"),
            (b"<!DOCTYPE html>".ljust(2000), "not a tar (begins with '<!DOCTYPE html>')"),
            (b"<html>\nnot found", "not a tar (begins with '<html>')"),
            (b"\x1f\x8b\n" * 600, "not a tar (begins with '\\x1f\\x8b')"),
        ],
    )
    def test_no_tar_at_all(self, shard, data, what):
        scan = scan_of(shard, data)
        assert scan.damage == what and scan.names == []

    @pytest.mark.parametrize(
        "size", [b"zzz\0", b"-0000001000\0", b"-7777777777\0", b"\xff" * 12, b"\x80" + b"\xff" * 11]
    )
    def test_crafted_sizes(self, shard, size):
        data = tar_bytes([("a.txt", b"1")])[:1024] + raw_header(size=size) + bytes(1024)
        scan = scan_of(shard, data)
        assert scan.damage and scan.names == ["a.txt"]

    @pytest.mark.parametrize("record", [b"size=x", b"size=-1024", b"size=99999999999999999999"])
    def test_crafted_pax_sizes(self, shard, record):
        record = b"%d %s\n" % (len(record) + 4 if len(record) + 4 > 9 else len(record) + 3, record)
        head = raw_header(b"pax", f"{len(record):011o}\0".encode(), b"x")
        body = record.ljust(512, b"\0") + raw_header(b"b.txt") + bytes(1024)
        scan = scan_of(shard, tar_bytes([("a.txt", b"1")])[:1024] + head + body)
        assert scan.damage and scan.names[0] == "a.txt"

    def test_oversized_extended_header(self, shard):
        data = raw_header(b"x", f"{1 << 20:011o}\0".encode(), b"L") + bytes(1 << 20)
        assert scan_of(shard, data).damage

    def test_folders_only_without_an_end_mark(self, shard):
        scan = scan_of(shard, raw_header(b"d/", kind=b"5"))
        assert scan.damage == "" and scan.names == []

    def test_empty_archive_is_whole(self, shard):
        scan = scan_of(shard, tar_bytes([]))
        assert scan.damage == "" and scan.names == [] and scan.end_mark

    def test_any_flipped_header_byte_loses_that_member_alone(self, shard):
        rng = np.random.default_rng(1)
        for _ in range(60):
            which, at = int(rng.integers(10)), int(rng.integers(512))
            data = bytearray(self.data)
            data[which * self.member + at] ^= 1 << int(rng.integers(7))
            scan = scan_of(shard, data)
            assert scan.names in (self.names(which), self.names()), (which, at)
            assert bool(scan.damage) == (len(scan.names) == 9)
