"""Remote shards that fail: retried only where that may help, and told in one line."""

import errno
import os
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
from tests.data.remote_files import SIZE, Flaky, copies, remote_urls, store_in


@pytest.fixture()
def urls(tmp_path):
    return remote_urls(tmp_path)


@pytest.fixture()
def flaky(monkeypatch):
    def install(method, *plan):
        files = Flaky(fsspec.filesystem("file"), method, plan)
        monkeypatch.setattr(shard_store, "filesystem", files.of)
        return files

    return install


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
    said = "it does not exist$" if type(error) is FileNotFoundError else "1 attempt$"
    with pytest.raises(StoreError, match=said):
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
    with pytest.raises(ConfigError, match=r"pip install 'clipkit\[remote\]'"):
        filesystem("s3://b/a.tar")
    with pytest.raises(ConfigError, match=r"pip install 'clipkit\[remote\]'"):
        filesystem("gs://b/a.tar")
    with pytest.raises(ConfigError, match="pip install adlfs"):
        filesystem("az://b/a.tar")
    monkeypatch.undo()
    monkeypatch.setitem(__import__("sys").modules, "aiohttp", None)
    with pytest.raises(ConfigError, match=r"pip install 'clipkit\[remote\]'"):
        filesystem("https://me:pw@h/a.tar")
    with pytest.raises(ConfigError, match="no protocol 'nonsense'"):
        filesystem("nonsense://h/a.tar")
