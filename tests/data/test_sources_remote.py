"""URLs as a source, through the store."""

import shutil

import fsspec
import pytest

from clipkit.data import sources
from clipkit.data.index_sidecar import Head
from clipkit.data.shard_store import ShardStore
from clipkit.data.sources import ShardSource
from clipkit.data.tar_index import load_index
from clipkit.errors import DataError
from tests.data.test_sources import cause, read
from tests.fixtures_shards import sample_members, tar_bytes, write_shards, write_tar


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def urls(tmp_path):
    root = f"/{tmp_path.name}"
    files = fsspec.filesystem("memory")
    for number in range(3):
        files.pipe(f"{root}/{number}.tar", tar_bytes(sample_members(10 * number, 4)))
    yield [f"memory:/{root}/{number}.tar" for number in range(3)]
    files.rm(root, recursive=True)


@pytest.fixture
def store(tmp_path):
    return ShardStore(tmp_path / "store", 10**8, retries=1, sleep=lambda s: None)


def test_reads_as_local_files_do(urls, store, tmp_path):
    local = [str(write_tar(tmp_path / f"{n}.tar", sample_members(10 * n, 4))) for n in range(3)]
    here, there = ShardSource(local), ShardSource(urls, store)
    assert there.manifest == here.manifest
    for part in range(3):
        for row in range(4):
            assert read(there, part, row) == read(here, part, row)
            assert there.key(part, row) == here.key(part, row)
    assert ShardSource([local[0], *urls[1:]], store).manifest == here.manifest


def test_an_indexed_shard_is_not_fetched_to_know_its_count(urls, store, tmp_path):
    ShardSource(urls, store)
    other = ShardStore(tmp_path / "other", 10**8)
    assert ShardSource(urls, other).counts.tolist() == [4, 4, 4]
    assert other.downloaded_bytes == 0


def test_shards_fetched_to_be_indexed_are_told(urls, store):
    (note,) = ShardSource(urls, store).notes
    assert note.startswith("3 remote shards have no index") and urls[0] in note
    assert "run clipkit-data index before uploading" in note
    assert ShardSource(urls, store).notes == []


def test_heads_alone_are_read_of_the_sidecars_beside(urls, store, tmp_path, monkeypatch):
    files = fsspec.filesystem("memory")
    for number, url in enumerate(urls):
        local = write_tar(tmp_path / f"{number}.tar", sample_members(10 * number, 4))
        load_index(str(local))
        sidecar = (tmp_path / f"{number}.tar.idx.npz").read_bytes()
        files.pipe(f"{url.removeprefix('memory:/')}.idx.npz", sidecar)
    with monkeypatch.context() as patch:
        patch.setattr(sources, "load_remote_index", lambda *a: pytest.fail("whole index"))
        source = ShardSource(urls, store)
    assert source.counts.tolist() == [4, 4, 4] and source.notes == []
    assert store.downloaded_bytes == 0 and source.key(2, 3) == "000023"


def test_without_a_store_it_is_refused(urls):
    with pytest.raises(DataError, match="is remote"):
        ShardSource(urls)


def test_unreachable_at_the_start(urls, store):
    with pytest.raises(DataError, match="cannot be fetched"):
        ShardSource([*urls, "memory://nowhere/9.tar"], store)


def test_unreachable_later_is_a_bad_sample_and_asked_once(urls, store, monkeypatch):
    source = ShardSource(urls, store)
    read(source, 0, 0)
    source._forget()
    asked = []

    def info(*args, **options):
        asked.append(args)
        raise ConnectionError

    memory = type(fsspec.filesystem("memory"))
    monkeypatch.setattr(memory, "info", info)
    for _ in range(4):
        assert cause(source, 1, 0) == "unreachable_shard" and source.key(1, 0) == ""
    assert len(asked) == 2  # one try and one retry
    monkeypatch.setattr(sources, "_UNREACHABLE_S", 0.0)
    assert cause(source, 1, 0) == "unreachable_shard" and len(asked) == 4
    monkeypatch.undo()


def test_evicted_and_gone_is_a_bad_sample(urls, store):
    source = ShardSource(urls, store)
    read(source, 1, 0)
    store._names.clear()
    shutil.rmtree(store.folder)
    fsspec.filesystem("memory").rm(urls[1].removeprefix("memory:/"))
    assert cause(source, 1, 0) == "unreachable_shard"


def test_prefetch_names_urls_only(urls, store, tmp_path):
    paths = write_shards(tmp_path / "shards", [1])
    named = []
    store.prefetch = named.extend
    source = ShardSource([paths[0], *urls[:2]], store)
    source.prefetch([0, 2])
    assert named == [urls[1]]


def test_names_hold_no_credentials(store, monkeypatch):
    head = Head(1, 0, False, False, False, "ab" * 32)
    monkeypatch.setattr(ShardSource, "_head", lambda self, path: head)
    source = ShardSource(["https://user:secret@host/a.tar?signature=secret"], store)
    assert source.part_name(0) == "https://host/a.tar"
    assert "secret" not in source.name + "".join(source.notes)
