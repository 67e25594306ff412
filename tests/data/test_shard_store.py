"""Remote shards: downloaded once and whole, within bounds, retried only where that may help."""

import errno
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
from clipkit.data.shard_store import (
    ShardStore,
    StoreError,
    filesystem,
    is_transient,
    plain_url,
    with_retries,
)
from clipkit.errors import ConfigError, DataError

SIZE = 1000


@pytest.fixture()
def memory():
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield files
    files.store.clear()


@pytest.fixture()
def urls(tmp_path):
    """Five files of 1,000 bytes."""
    (tmp_path / "remote").mkdir()
    for i in range(5):
        (tmp_path / "remote" / f"{i}.tar").write_bytes(bytes([i]) * SIZE)
    return [f"file://{tmp_path}/remote/{i}.tar" for i in range(5)]


class Flaky:
    """A file system whose next calls of `method` meet the errors of `plan`, one each."""

    def __init__(self, files, method, plan):
        self.files, self.method, self.plan, self.calls = files, method, list(plan), 0

    def __getattr__(self, name):
        def call(*args, **kwargs):
            if name == self.method:
                self.calls += 1
                if self.plan:
                    error = self.plan.pop(0)
                    if isinstance(error, Exception):
                        raise error
                    return error(*args, **kwargs)
            return getattr(self.files, name)(*args, **kwargs)

        return call


@pytest.fixture()
def flaky(monkeypatch):
    def install(method, *plan):
        files = Flaky(fsspec.filesystem("file"), method, plan)
        monkeypatch.setattr(
            shard_store, "filesystem", lambda url: (files, url.partition("://")[2].split("@")[-1])
        )
        return files

    return install


def store_in(tmp_path, room=10 * SIZE, **options):
    waits = []
    store = ShardStore(tmp_path / "cache", room, **{"sleep": waits.append, **options})
    store.waits = waits
    return store


def copies(store):
    return sorted(p.read_bytes()[0] for p in store.folder.glob("*.tar"))


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
    shard_store.filesystem = lambda url: (files, url.partition("://")[2])
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


def test_a_part_in_download_counts_with_its_whole_size_and_stays(tmp_path, urls):
    store = store_in(tmp_path, room=3 * SIZE)
    for url in urls[:2]:
        store.local(url)
    started, go_on = threading.Event(), threading.Event()

    def slow(path, local):
        started.set()
        assert go_on.wait(20)
        Path(local).write_bytes(b"\2" * SIZE)

    files = Flaky(fsspec.filesystem("file"), "get_file", [slow])
    real, shard_store.filesystem = (
        shard_store.filesystem,
        lambda url: (files, url.partition("://")[2]),
    )
    try:
        thread = threading.Thread(target=store.local, args=(urls[2],))
        thread.start()
        assert started.wait(20)
        other = store_in(tmp_path, room=3 * SIZE)
        other.local(urls[3])  # two copies, one part, and this one: a copy must go, the part not
        assert len(copies(other)) == 2 and len(list(other.folder.glob("*.part"))) == 1
        go_on.set()
        thread.join(20)
    finally:
        shard_store.filesystem = real
    assert {2, 3} <= set(copies(store))


class ServerError(Exception):
    def __init__(self, status):
        super().__init__("https://user:pw@host/x?sig=secret")
        self.status = status


class ServerDisconnectedError(Exception):
    """As aiohttp names it."""


class NoCredentialsError(Exception):
    """As botocore names it."""


TRANSIENT = [
    ConnectionResetError("x"),
    TimeoutError(),
    ServerError(503),
    ServerError(429),
    OSError(errno.EBUSY, "slow down"),
    ServerDisconnectedError(),
]
FINAL = [
    FileNotFoundError("x"),
    PermissionError("x"),
    ServerError(403),
    ServerError(404),
    NoCredentialsError(),
    ValueError("x"),
]


@pytest.mark.parametrize("error", TRANSIENT, ids=repr)
@pytest.mark.parametrize("method", ["info", "get_file"])
def test_transient_errors_are_retried(tmp_path, urls, flaky, error, method):
    assert is_transient(error)
    store = store_in(tmp_path)
    flaky(method, error, error)
    assert Path(store.local(urls[3])).read_bytes() == b"\3" * SIZE
    assert (store.retried, store.failed, len(store.waits)) == (2, 0, 2)


@pytest.mark.parametrize("error", FINAL, ids=repr)
def test_other_errors_fail_at_once(tmp_path, urls, flaky, error):
    assert not is_transient(error)
    store, files = store_in(tmp_path), flaky("info", error)
    with pytest.raises(StoreError, match="1 attempt$"):
        store.local(urls[0])
    assert (files.calls, store.retried, store.failed, store.waits) == (1, 0, 1, [])


def test_waits_grow_to_a_cap_and_are_the_same_again():
    def waits(url):
        seen = []

        def fail():
            raise ConnectionError

        with pytest.raises(StoreError, match="11 attempts"):
            with_retries(fail, url, 10, seen.append)
        return seen

    first = waits("s3://b/1.tar")
    limits = [min(30, 0.5 * 2**n) for n in range(10)]
    assert all(limit / 2 <= wait <= limit for wait, limit in zip(first, limits))
    assert first == waits("s3://b/1.tar") != waits("s3://b/2.tar")


def test_a_short_download_is_retried_and_never_handed_out(tmp_path, urls, flaky):
    def short(path, local):
        Path(local).write_bytes(b"half")

    store = store_in(tmp_path, retries=2)
    flaky("get_file", short, short)
    assert os.path.getsize(store.local(urls[0])) == SIZE
    assert (store.retried, store.downloaded_bytes) == (2, SIZE)
    flaky("get_file", short, short, short)
    with pytest.raises(StoreError, match="3 attempts"):
        store.local(urls[1])
    assert copies(store) == [0] and not list(store.folder.glob("*.part"))


def test_a_failure_is_told_again_at_once_for_a_minute(tmp_path, urls, flaky, monkeypatch):
    store, now = store_in(tmp_path, retries=1), [1000.0]
    monkeypatch.setattr(shard_store.time, "monotonic", lambda: now[0])
    files = flaky("info", *[ConnectionError()] * 2)
    for _ in range(3):
        with pytest.raises(StoreError, match=r"0\.tar' cannot be fetched: ConnectionError"):
            store.local(urls[0])
        now[0] += 29
    assert (files.calls, store.failed) == (2, 1)
    assert os.path.getsize(store.local(urls[0])) == SIZE


def test_credentials_are_in_no_message_and_no_name(tmp_path, urls, flaky):
    secret = urls[0].replace("file://", "file://user:pw@") + "?sig=secret"
    flaky("info", ServerError(401))
    with pytest.raises(StoreError) as caught:
        store_in(tmp_path).local(secret)
    assert "ServerError 401" in str(caught.value)
    assert "pw" not in str(caught.value) and "secret" not in str(caught.value)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__
    flaky("info", ValueError("no such thing: https://user:pw@host/x?sig=secret"))
    with pytest.raises(StoreError, match="ValueError, 1 attempt$"):
        store_in(tmp_path).local(secret)
    plain = "s3://b/k@1.tar"
    assert plain_url("s3://user:pw@b/k@1.tar?X-Amz-Signature=1#x") == plain
    assert plain_url("/a?b/c.tar") == "/a?b/c.tar"
    pipe = "pipe:curl -H 'Authorization: t0ken' 'https://me:pw@h/1.tar?sig=x'"
    assert plain_url(pipe) == "pipe: https://h/1.tar"


def test_who_reads_does_not_change_the_copy(tmp_path, urls, flaky):
    flaky("nothing")
    store = store_in(tmp_path)
    plain = store.local(urls[0])
    assert store.local(urls[0].replace("file://", "file://user:pw@")) == plain


def test_a_full_disk_and_an_unusable_folder_are_one_line(tmp_path, urls, flaky):
    flaky("get_file", OSError(errno.ENOSPC, "No space left on device"))
    store = store_in(tmp_path)
    with pytest.raises(DataError, match="disk of the shard cache .*cache' is full"):
        store.local(urls[0])
    assert store.waits == [] and not list(store.folder.glob("*.part"))
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be used: Not a directory"):
        ShardStore(tmp_path / "file" / "cache", SIZE).local(urls[0])


def test_missing_packages_and_unknown_protocols(monkeypatch):
    def no_package(url, **options):
        raise ImportError("Install s3fs")

    monkeypatch.setattr(shard_store.fsspec.core, "url_to_fs", no_package)
    with pytest.raises(ConfigError, match="pip install s3fs"):
        filesystem("s3://b/a.tar")
    with pytest.raises(ConfigError, match="pip install gcsfs"):
        filesystem("gs://b/a.tar")
    monkeypatch.undo()
    monkeypatch.setitem(__import__("sys").modules, "aiohttp", None)
    with pytest.raises(ConfigError, match="pip install aiohttp"):
        filesystem("https://me:pw@h/a.tar")
    with pytest.raises(ConfigError, match="no protocol 'nonsense'"):
        filesystem("nonsense://h/a.tar")


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


def test_prefetch_never_waits(tmp_path, urls, flaky):
    go_on = threading.Event()
    flaky("info", *[lambda *_: go_on.wait(20)] * 4)
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
