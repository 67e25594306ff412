"""Remote shards: downloaded once and whole, within bounds, and ahead of their use."""

import itertools
import multiprocessing
import os
import pickle
import signal
import threading
import time
from pathlib import Path

import fsspec
import pytest

from clipkit.data import shard_store
from clipkit.data.shard_store import ShardStore, StoreError
from clipkit.errors import DataError
from tests.data.remote_files import SIZE, Flaky, copies, remote_urls, store_in


@pytest.fixture()
def memory():
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield files
    files.store.clear()


@pytest.fixture()
def urls(tmp_path):
    return remote_urls(tmp_path)


def test_a_shard_is_downloaded_once_and_whole(tmp_path, memory):
    memory.pipe("/b/a.tar", b"x" * SIZE)
    store = store_in(tmp_path)
    path = store.local("memory://b/a.tar")
    assert Path(path).read_bytes() == b"x" * SIZE
    assert store.local("memory://b/a.tar") == path
    assert (store.downloaded_bytes, store.hits, store.failed) == (SIZE, 1, 0)
    again = store_in(tmp_path)  # another run
    assert again.local("memory://b/a.tar") == path
    assert (again.downloaded_bytes, again.hits) == (0, 1)
    assert store.local("/a/local/path.tar") == "/a/local/path.tar"


def test_a_shard_replaced_remotely_is_fetched_anew(tmp_path, urls):
    path = store_in(tmp_path).local(urls[0])
    remote = urls[0][len("file://") :]
    Path(remote).write_bytes(b"n" * SIZE)
    os.utime(remote, (1, 1))
    assert Path(store_in(tmp_path).local(urls[0])).read_bytes() == b"n" * SIZE
    assert Path(path).read_bytes() == b"\0" * SIZE


def test_a_copy_cut_by_a_crash_is_fetched_anew(tmp_path, urls):
    store = store_in(tmp_path)
    os.truncate(store.local(urls[0]), 10)
    assert os.path.getsize(store.local(urls[0])) == SIZE
    os.truncate(store.local(urls[0]), 10)
    assert os.path.getsize(store_in(tmp_path).local(urls[0])) == SIZE


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
def test_the_least_recently_used_goes_first(tmp_path, urls, order):
    store = store_in(tmp_path, room=3 * SIZE)
    for age, i in zip((30, 20, 10), order):
        os.utime(store.local(urls[i]), (time.time() - age,) * 2)
    store.local(urls[order[0]])  # now the oldest is the second
    store.local(urls[3])
    assert copies(store) == sorted([order[0], order[2], 3])
    store.local(urls[4])
    assert copies(store) == sorted([order[0], 3, 4])


def test_foreign_files_stay_and_sidecars_go_with_their_shard(tmp_path, urls):
    store = store_in(tmp_path, room=2 * SIZE)
    path = store.local(urls[0])
    os.utime(path, (1, 1))
    sidecar = f"{path}.idx.npz"
    Path(sidecar).write_bytes(b"i" * 10)
    foreign = store.folder / "thesis.tar"
    foreign.write_bytes(b"t" * 10 * SIZE)
    store.local(urls[1])  # 1,010 + 1,000 bytes are too many
    assert copies(store) == [1, ord("t")] and foreign.exists()
    assert not os.path.exists(sidecar)


def test_an_evicted_shard_stays_readable(tmp_path, urls):
    store = store_in(tmp_path, room=SIZE)
    with store.open(urls[0]) as file:
        store.local(urls[1])
        assert copies(store) == [1]
        assert file.read() == b"\0" * SIZE


def test_open_comes_back_when_another_process_evicts_first(tmp_path, urls, monkeypatch):
    store, times = store_in(tmp_path), []
    real = store.local

    def local(url):
        path = real(url)
        times.append(path)
        if len(times) == 1:
            os.unlink(path)
        return path

    monkeypatch.setattr(store, "local", local)
    with store.open(urls[1]) as file:
        assert file.read() == b"\1" * SIZE
    assert len(times) == 2


def test_a_shard_larger_than_the_cache_is_refused(tmp_path, urls):
    with pytest.raises(DataError, match=r"limited to 999 bytes, fewer than the 1000 of .*0\.tar"):
        store_in(tmp_path, room=SIZE - 1).local(urls[0])


def _fetch_all(folder, urls, out):
    store = ShardStore(folder, 10 * SIZE)
    whole = [Path(store.local(url)).read_bytes() == bytes([i]) * SIZE for i, url in enumerate(urls)]
    out.put((store.downloaded_bytes, all(whole)))


def test_processes_share_a_folder_and_download_each_shard_once(tmp_path, urls):
    context = multiprocessing.get_context("fork")
    out = context.Queue()
    workers = [
        context.Process(target=_fetch_all, args=(tmp_path / "cache", urls, out)) for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    results = [out.get(timeout=30) for _ in workers]
    for worker in workers:
        worker.join(30)
    assert all(whole for _, whole in results)
    assert sum(count for count, _ in results) == 5 * SIZE


def _die_half_way(folder, url):
    def get_file(path, local):
        with open(local, "wb") as file:
            file.write(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    files = Flaky(fsspec.filesystem("file"), "get_file", [get_file])
    shard_store.filesystem = files.of
    ShardStore(folder, 10 * SIZE).local(url)


def test_a_killed_process_leaves_no_lock_and_its_part_is_removed(tmp_path, urls):
    store = store_in(tmp_path)
    for url in urls[:2]:
        dying = multiprocessing.get_context("fork").Process(
            target=_die_half_way, args=(store.folder, url)
        )
        dying.start()
        dying.join(30)
        assert dying.exitcode == -signal.SIGKILL
    assert len(list(store.folder.glob("*.part"))) >= 1
    assert os.path.getsize(store.local(urls[0])) == SIZE
    assert not list(store.folder.glob("*.part"))


def test_a_part_in_download_counts_with_its_whole_size_and_stays(tmp_path, urls, monkeypatch):
    store = store_in(tmp_path, room=3 * SIZE)
    for url in urls[:2]:
        store.local(url)
    started, go_on = threading.Event(), threading.Event()

    def slow(path, local):
        started.set()
        assert go_on.wait(20)
        Path(local).write_bytes(b"\2" * SIZE)

    files = Flaky(fsspec.filesystem("file"), "get_file", [slow])
    monkeypatch.setattr(shard_store, "filesystem", files.of)
    thread = threading.Thread(target=store.local, args=(urls[2],))
    thread.start()
    assert started.wait(20)
    other = store_in(tmp_path, room=3 * SIZE)
    other.local(urls[3])  # two copies, one part, and this one: a copy must go, the part not
    assert len(copies(other)) == 2 and len(list(other.folder.glob("*.part"))) == 1
    go_on.set()
    thread.join(20)
    assert {2, 3} <= set(copies(store))


def wait_for(condition):
    for _ in range(500):
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_prefetch_downloads_in_the_background_and_swallows_errors(tmp_path, urls):
    store = store_in(tmp_path)
    store.prefetch([f"{urls[0]}.gone", *urls[:3], "/a/local/path.tar"])
    assert wait_for(lambda: copies(store) == [0, 1, 2])
    with pytest.raises(StoreError, match="gone"):
        store.local(f"{urls[0]}.gone")
    assert wait_for(lambda: not store._waiting)
    done = store.downloaded_bytes
    assert store.local(urls[0]) and store.downloaded_bytes == done == 3 * SIZE


def test_prefetch_takes_half_of_the_room(tmp_path, urls):
    store = store_in(tmp_path, room=4 * SIZE)
    store.local(urls[4])  # now a size is known to guess by
    store.prefetch(urls[:4])
    assert wait_for(lambda: not store._waiting)
    assert copies(store) == [0, 1, 4]
    store.prefetch([urls[0], urls[2], urls[3]])  # one of them is there and takes its part
    assert wait_for(lambda: not store._waiting)
    assert copies(store) == [0, 1, 2, 4]


def test_prefetch_never_waits(tmp_path, urls, monkeypatch):
    go_on = threading.Event()
    files = Flaky(fsspec.filesystem("file"), "info", [lambda *_: go_on.wait(20)] * 4)
    monkeypatch.setattr(shard_store, "filesystem", files.of)
    store = store_in(tmp_path, room=10**9)
    store.prefetch([f"{urls[0]}?{i}" for i in range(200)])  # threads are busy, the queue overflows
    assert 0 < len(store._waiting) <= 68
    go_on.set()


def test_a_store_is_picklable_and_each_process_prefetches_for_itself(tmp_path, urls):
    store = ShardStore(tmp_path / "cache", 10 * SIZE)
    store.prefetch(urls[:1])
    assert wait_for(lambda: not store._waiting)
    assert pickle.loads(pickle.dumps(store)).local(urls[0]) == store.local(urls[0])

    def child():
        store.prefetch(urls[1:3])
        os._exit(0 if wait_for(lambda: copies(store) == [0, 1, 2]) else 1)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(30)
    assert process.exitcode == 0
