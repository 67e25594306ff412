"""Index of a remote shard: cached, beside it, or scanned; a replaced shard gets a new one."""

import fsspec
import pytest

from clipkit.data import remote_index
from clipkit.data.remote_index import load_remote_index, remote_head
from clipkit.data.shard_store import ShardStore, StoreError
from clipkit.data.tar_index import build_index, load_index
from tests.fixtures_shards import sample_members, tar_bytes, write_tar


@pytest.fixture
def files(monkeypatch, tmp_path):
    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path / "cache"))
    memory = fsspec.filesystem("memory")
    memory.pipe("/remote/a.tar", tar_bytes(sample_members(0, 3)))
    yield memory
    memory.rm("/remote", recursive=True)


@pytest.fixture
def store(tmp_path):
    return ShardStore(tmp_path / "store", 10**8, retries=0)


URL = "memory://remote/a.tar"


@pytest.fixture
def scans(monkeypatch):
    counted = []
    monkeypatch.setattr(remote_index, "build_index", lambda p: counted.append(p) or build_index(p))
    return counted


def test_scanned_once_then_from_the_cache(files, store, scans, tmp_path):
    index = load_remote_index(URL, store)
    assert len(index) == 3 and index.path == URL and len(scans) == 1
    other = ShardStore(tmp_path / "other", 10**8)
    again = load_remote_index(URL, other)
    assert again.head == index.head and len(scans) == 1 and other.downloaded_bytes == 0


def test_a_sidecar_beside_it_spares_the_download(files, store, scans, tmp_path):
    local = write_tar(tmp_path / "a.tar", sample_members(0, 3))
    head = load_index(str(local)).head
    files.pipe("/remote/a.tar.idx.npz", (tmp_path / "a.tar.idx.npz").read_bytes())
    assert load_remote_index(URL, store).head == head
    assert not scans and store.downloaded_bytes == 0
    files.rm("/remote/a.tar.idx.npz")
    assert load_remote_index(URL, store).head == head and not scans


def test_the_head_alone_takes_one_small_read(files, store, tmp_path, monkeypatch):
    assert remote_head(URL, store) is None
    local = write_tar(tmp_path / "a.tar", sample_members(0, 3))
    head = load_index(str(local)).head
    files.pipe("/remote/a.tar.idx.npz", (tmp_path / "a.tar.idx.npz").read_bytes())
    read, sizes = type(files).cat_file, []

    def cat_file(*args, **options):
        data = read(*args, **options)
        sizes.append(len(data))
        return data

    monkeypatch.setattr(type(files), "cat_file", cat_file)
    assert remote_head(URL, store) == head and sizes == [1024] and store.downloaded_bytes == 0
    load_remote_index(URL, store)
    files.rm("/remote/a.tar.idx.npz")
    assert remote_head(URL, store) == head  # of the cached index


@pytest.mark.parametrize("what", ["other shard", "nonsense"])
def test_a_sidecar_of_another_shard_is_passed_over(files, store, scans, tmp_path, what):
    local = write_tar(tmp_path / "a.tar", sample_members(0, 40))
    load_index(str(local))
    beside = (tmp_path / "a.tar.idx.npz").read_bytes() if what == "other shard" else b"PK"
    files.pipe("/remote/a.tar.idx.npz", beside)
    assert len(load_remote_index(URL, store)) == 3 and len(scans) == 1


def test_replaced_shard(files, store, tmp_path):
    assert len(load_remote_index(URL, store)) == 3
    files.pipe("/remote/a.tar", tar_bytes(sample_members(0, 30)))
    assert len(load_remote_index(URL, store)) == 3  # of the copy that this process reads
    other = ShardStore(tmp_path / "other", 10**8)
    assert len(load_remote_index(URL, other)) == 30


def test_unreachable(files, store):
    with pytest.raises(StoreError, match="cannot be fetched"):
        load_remote_index("memory://remote/none.tar", store)
