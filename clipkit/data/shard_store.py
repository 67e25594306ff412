"""Remote shards: fetched through fsspec, retried, and kept in a bounded local folder.

No torch. The folder is shared by all ranks and workers of a machine: a file is downloaded once,
under a lock that the kernel frees with its process, to a temporary name that is renamed when whole.
Names hold a hash of URL, size and version, so a shard that is replaced remotely is fetched anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import io
import os
import queue
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from clipkit.data.shards import is_url
from clipkit.errors import ConfigError, DataError

T = TypeVar("T")

_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.5, 30.0
_FORGET_FAILURE_S = 60.0
_THREADS, _QUEUE = 4, 64
_OPEN_ATTEMPTS = 5
_ENTRY = re.compile(r"([0-9a-f]{32}-(\d+))\.(.+)")
_PACKAGES = dict.fromkeys(("http", "https", "s3", "s3a", "gs", "gcs"), "'clipkit[remote]'")
_PACKAGES |= {"az": "adlfs", "abfs": "adlfs", "hf": "huggingface_hub"}
_BUSY = {errno.EIO, errno.EBUSY, errno.EAGAIN, errno.ENETUNREACH, errno.EHOSTUNREACH}
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}


class StoreError(OSError):
    """A remote shard cannot be had; the message holds no credentials."""


def plain_url(url: str) -> str:
    """A URL without user, password and query; of a pipe only the words that name a tar."""
    if url.lower().startswith("pipe:"):
        words = [plain_url(word.strip("'\"")) for word in url[5:].split() if ".tar" in word]
        return " ".join(["pipe:", *words])
    return _no_user(url).partition("?")[0].partition("#")[0] if is_url(url) else url


def _no_user(url: str) -> str:
    return re.sub(r"(?<=://)[^/]*@", "", url)


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path within it. Ask anew in every process.

    Raises:
        ConfigError: The protocol is unknown, or its package is not installed.
    """
    protocol = url.partition("://")[0].rpartition("::")[2]
    try:
        options = {}
        if protocol in ("http", "https"):
            import aiohttp

            # aiohttp's own limit of 5 minutes ends a large download that goes well
            limits = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
            options["client_kwargs"] = {"timeout": limits}
        return fsspec.core.url_to_fs(url, **options)
    except ImportError:
        package = _PACKAGES.get(protocol, f"fsspec[{protocol}]")
        raise ConfigError(f"{protocol}:// shards need a package: pip install {package}") from None
    except ValueError:
        raise ConfigError(f"'{plain_url(url)}': fsspec knows no protocol '{protocol}'") from None


def is_transient(error: BaseException) -> bool:
    """Whether another try may go better: connection, time-out or server error, nothing else."""
    status = getattr(error, "status", None) or getattr(error, "code", None)
    if str(status).isdigit():
        return int(str(status)) >= 500 or int(str(status)) in (408, 429)
    if isinstance(error, (ConnectionError, TimeoutError, asyncio.TimeoutError, EOFError)):
        return True
    if isinstance(error, OSError) and error.errno in _BUSY:
        return True
    # By name: aiohttp and botocore are optional, and their kinds have no base in common.
    names = " ".join(kind.__name__ for kind in type(error).__mro__)
    return bool(re.search("Connection|Connect|Timeout|Disconnected|Payload|IncompleteRead", names))


def with_retries(
    action: Callable[[], T],
    url: str,
    retries: int,
    sleep: Callable[[float], None] = time.sleep,
    on_retry: Callable[[], None] = lambda: None,
) -> T:
    """What `action` returns; transient errors are tried again after 0.5, 1, 2, ... 30 s.

    Each wait is shortened by up to half, by a draw that URL and attempt fix, so that many URLs
    do not come back at the same moment.

    Raises:
        StoreError: Still failing, or at once for other errors (missing, refused).
        ConfigError, DataError: As `action` raised them.
    """
    for attempt in range(retries + 1):
        try:
            return action()
        except (ConfigError, DataError, StoreError):
            raise
        except Exception as error:  # every backend has its own kinds
            if attempt == retries or not is_transient(error):
                raise StoreError(_failure(url, attempt + 1, error)) from None
        on_retry()
        jitter = random.Random(f"{url}:{attempt}").uniform(0.5, 1.0)
        sleep(min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2**attempt) * jitter)
    raise AssertionError("unreachable")


def _failure(url: str, attempts: int, error: Exception) -> str:
    # Not str(error): backends put the whole URL into it, signature and all.
    if isinstance(error, FileNotFoundError):
        return f"'{plain_url(url)}' cannot be fetched: it does not exist"
    status = getattr(error, "status", None) or getattr(error, "code", None)
    reason = f"{type(error).__name__} {status}" if status else type(error).__name__
    tries = "1 attempt" if attempts == 1 else f"{attempts} attempts"
    return f"'{plain_url(url)}' cannot be fetched: {reason}, {tries}"


class ShardStore:
    """Bounded local cache of remote shards; the least recently used one goes first.

    Picklable, and usable after a fork; the counters are of one process.

    Args:
        folder: Where copies lie; only files this class named are ever deleted.
        max_bytes: Room for all copies. Files in download at the same time may exceed it.
        retries: Further tries after a transient error.
        sleep: Waits so many seconds.

    Attributes:
        retried, failed, hits, downloaded_bytes: What happened so far.
    """

    def __init__(
        self,
        folder: Path,
        max_bytes: int,
        retries: int = 5,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.folder, self.max_bytes, self.retries = Path(folder), max_bytes, retries
        self.retried = self.failed = self.hits = self.downloaded_bytes = 0
        self._sleep = sleep
        self._names: dict[str, tuple[str, int | None]] = {}  # URL -> file name, size
        self._failures: dict[str, tuple[float, str]] = {}  # URL -> when, message
        self._ahead: tuple[int, queue.Queue[str]] | None = None  # process it belongs to, URLs
        self._waiting: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ahead": None, "_waiting": set()}

    def local(self, url: str) -> str:
        """Path of the local copy, downloaded where there is none. A local path stands for itself.

        Another process may evict the copy before it is opened: see `open`.

        Raises:
            StoreError: Missing, refused, or failing after the retries. For a minute it is told
                again at once, since every sample of the shard will ask.
            ConfigError: The protocol's package is not installed.
            DataError: The folder cannot be written, is full, or is smaller than the shard.
        """
        if not is_url(url):
            return url
        if url in self._names and self._is_here(*self._names[url]):
            self.hits += 1
            return str(self.folder / self._names[url][0])
        when, message = self._failures.get(url, (-_FORGET_FAILURE_S, ""))
        if time.monotonic() - when < _FORGET_FAILURE_S:
            raise StoreError(message)
        try:
            return with_retries(
                lambda: self._fetch(url), url, self.retries, self._sleep, self._count_retry
            )
        except StoreError as error:
            self.failed += 1
            self._failures[url] = (time.monotonic(), str(error))
            raise

    def open(self, url: str) -> io.BufferedReader:
        """The shard, opened; it stays readable when its copy is evicted.

        Raises:
            As `local`; StoreError also where the folder is too small for those who share it.
        """
        for _ in range(_OPEN_ATTEMPTS):
            with contextlib.suppress(FileNotFoundError):
                return open(self.local(url), "rb")
            if not is_url(url):
                raise StoreError(f"'{url}' does not exist")
        raise StoreError(
            f"'{plain_url(url)}' was evicted before it could be opened; raise max_bytes"
        )

    def prefetch(self, urls: Sequence[str]) -> None:
        """Download in the background what comes next, at most half of the folder's room.

        Never raises and never waits; `local` will meet the errors.
        """
        if self._ahead is None or self._ahead[0] != os.getpid():
            self._ahead, self._waiting = (os.getpid(), queue.Queue(_QUEUE)), set()
            for _ in range(_THREADS):  # daemons: no exit waits for a download
                threading.Thread(target=self._work, args=self._ahead[1:], daemon=True).start()
        known = [size or 0 for _, size in list(self._names.values())]
        guess, room = max(known, default=0), self.max_bytes // 2
        for url in urls:
            room -= self._names[url][1] or 0 if url in self._names else guess
            if room < 0:
                return
            if is_url(url) and url not in self._waiting:
                self._waiting.add(url)
                try:
                    self._ahead[1].put_nowait(url)
                except queue.Full:
                    self._waiting.discard(url)
                    return

    def _work(self, urls: queue.Queue[str]) -> None:
        while True:
            url = urls.get()
            with contextlib.suppress(Exception):
                self.local(url)
            self._waiting.discard(url)

    def _count_retry(self) -> None:
        self.retried += 1

    def _is_here(self, name: str, size: int | None) -> bool:
        """Whether a copy is there and whole; marks it as just used."""
        path = self.folder / name
        try:
            os.utime(path)
            return size is None or path.stat().st_size == size
        except OSError:
            return False

    def _fetch(self, url: str) -> str:
        """One try."""
        files, path = filesystem(url)
        info = files.info(path)
        size = None if info.get("size") is None else int(info["size"])
        marks = [str(info.get(k)) for k in ("ETag", "etag", "mtime", "LastModified", "updated")]
        identity = "\0".join([_no_user(url), str(size), *marks]).encode()
        stem = f"{hashlib.sha256(identity).hexdigest()[:32]}-{size or 0}"
        name = f"{stem}.tar"
        with self._lock(f"{stem[:3]}.lock"):
            if self._is_here(name, size):  # another process or thread was faster
                self.hits += 1
            else:
                self._download(files, path, url, stem, size)
        self._names[url] = name, size
        return str(self.folder / name)

    def _download(self, files: Any, path: str, url: str, stem: str, size: int | None) -> None:
        part = self.folder / f"{stem}.part"
        self._reserve(part, size or 0, url)
        try:
            files.get_file(path, str(part))
            got = part.stat().st_size
            if size is not None and got != size:
                raise ConnectionError(f"{got} of {size} bytes")
            os.utime(part)
            os.replace(part, self.folder / f"{stem}.tar")
        except OSError as error:
            if error.errno in _NO_SPACE:
                raise self._full() from None
            raise
        finally:
            part.unlink(missing_ok=True)
        self.downloaded_bytes += got

    def _reserve(self, part: Path, size: int, url: str) -> None:
        """Make room and take it: the size in a part's name counts from here on."""
        if size > self.max_bytes:
            raise DataError(
                f"the shard cache is limited to {self.max_bytes} bytes, fewer than the {size} of "
                f"'{plain_url(url)}'; raise its limit"
            )
        with self._lock("evict.lock"):
            entries: dict[str, list[os.DirEntry[str]]] = {}  # a copy and what lies beside it
            total, used = size, {}
            for entry in os.scandir(self.folder):
                match = _ENTRY.fullmatch(entry.name)
                if not match or self._is_left_over(entry, match):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    is_part = match[3] == "part"
                    total += int(match[2]) if is_part else entry.stat().st_size
                    if not is_part:
                        entries.setdefault(match[1], []).append(entry)
                    if match[3] == "tar":
                        used[match[1]] = entry.stat().st_mtime_ns
            for stem in sorted(entries, key=lambda s: used.get(s, 0)):
                if total <= self.max_bytes:
                    break
                for entry in entries[stem]:
                    with contextlib.suppress(FileNotFoundError):
                        total -= entry.stat().st_size
                        os.unlink(entry.path)
            try:
                part.touch()
            except OSError as error:
                raise self._unusable(error) from None

    def _is_left_over(self, entry: os.DirEntry[str], match: re.Match[str]) -> bool:
        """Whether this is the part of a process that is gone; then it is deleted."""
        if match[3] != "part":
            return False
        with open(self.folder / f"{match[1][:3]}.lock", "ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return False
            with contextlib.suppress(FileNotFoundError):
                os.unlink(entry.path)
            return True

    @contextlib.contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        """Alone among all processes and threads; few names, so lock files need no deleting."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = open(self.folder / name, "ab")  # noqa: SIM115
        except OSError as error:
            raise self._unusable(error) from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                raise self._unusable(error) from None
            yield

    def _unusable(self, error: OSError) -> DataError:
        if error.errno in _NO_SPACE:
            return self._full()
        return DataError(
            f"the shard cache '{self.folder}' cannot be used: {error.strerror}; "
            f"give it a folder on a local disk that may be written"
        )

    def _full(self) -> DataError:
        return DataError(
            f"the disk of the shard cache '{self.folder}' is full; "
            f"lower the cache's limit or put it on a larger disk"
        )
