"""Files that others name: regular ones are read within a limit, all else is refused at once."""

import os

import pytest

from clipkit.data.plain_files import check_plain, read_plain


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 200_000])
@pytest.mark.parametrize("limit", [100, 1_000_000])
def test_a_limit(tmp_path, size, limit):
    (tmp_path / "a").write_bytes(b"x" * size)
    expected = b"x" * size if size <= limit else None
    assert read_plain(str(tmp_path / "a"), limit) == expected
    assert check_plain(str(tmp_path / "a")).st_size == size


def test_a_file_that_tells_no_size():
    assert os.stat("/proc/self/status").st_size == 0
    assert read_plain("/proc/self/status", 1 << 20).startswith(b"Name:")
    assert read_plain("/proc/self/status", 20) is None


def test_whatever_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    os.symlink("/dev/zero", tmp_path / "zero")
    before = len(os.listdir("/proc/self/fd"))
    for name in ("pipe", "zero", "."):
        for look in (check_plain, lambda path: read_plain(path, 10)):
            with pytest.raises(OSError, match="no regular file"):
                look(str(tmp_path / name))
    with pytest.raises(FileNotFoundError):
        read_plain(str(tmp_path / "none"), 10)
    assert len(os.listdir("/proc/self/fd")) == before
