"""One shard read from its first byte to its last: raw samples, and word of all that is lost.

Python's tarfile takes a damaged header for the end of the archive. So the shard is read through a
stream that counts, and what lies behind the supposed end is looked at. tarfile walks the headers,
webdataset groups members and runs pipes; members are read here, because webdataset reads any
member whole, of whatever size.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import re
import tarfile
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from webdataset.gopen import gopen_pipe
from webdataset.tariterators import group_by_keys

from clipkit.data.plain_files import check_plain
from clipkit.data.shard_store import ShardStore, filesystem, plain_url, with_retries
from clipkit.data.shards import is_url
from clipkit.errors import ConfigError, DataError

_HEADERS = 1 << 20  # bytes that headers between two members may take, and padding at the end
_CHUNK = 1 << 20
# Python's tarfile looks for a record of a pax header in time with the square of a run of digits,
# and no name or number in one is so long.
_ENDLESS = re.compile(rb"[0-9]{256}")
_RETRIES = 5


class RemoteStream(io.RawIOBase):
    """A remote file, read in sequence; after a dropped connection it goes on at the same byte.

    Args:
        url: As fsspec knows it.
        retries: Further tries of each read after a transient error.
        sleep: Waits so many seconds.
    """

    def __init__(
        self, url: str, retries: int = _RETRIES, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._url, self._retries, self._sleep = url, retries, sleep
        self._file: Any = None
        self._position = 0

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` as far as the file goes.

        Raises:
            StoreError: Missing, refused, or failing after the retries.
        """
        data = with_retries(lambda: self._read(len(buffer)), self._url, self._retries, self._sleep)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _read(self, count: int) -> bytes:
        try:
            if self._file is None:
                files, path = filesystem(self._url)
                self._file = files.open(path, "rb")
                if self._position:
                    self._file.seek(self._position)
            return bytes(self._file.read(count))
        except Exception:
            self._drop()
            raise

    def _drop(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(Exception):
                file.close()

    def close(self) -> None:
        """Release the connection."""
        self._drop()
        super().close()


class _Forward:
    """What tarfile needs of a file: reading, and seeking forward.

    Attributes:
        last: The bytes read last.
        left: Bytes that may be read before the next member; a header can claim any length.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._position = stream, 0
        self.last, self.left = b"", _HEADERS

    def tell(self) -> int:
        return self._position

    def read(self, count: int) -> bytes:
        """Of headers."""
        data = self.content(count)
        if _ENDLESS.search(data):
            raise tarfile.ReadError("a header that holds an endless number")
        return data

    def content(self, count: int) -> bytes:
        if not 0 <= count <= self.left:
            raise tarfile.ReadError("a header of unreasonable length")
        self.last = self._stream.read(count)
        self._position += len(self.last)
        self.left -= len(self.last)
        return self.last

    def seek(self, position: int) -> None:
        if position < self._position:  # a negative size; tarfile would walk in circles
            raise tarfile.ReadError("a header of negative size")
        if self._stream.seekable():
            self._position = self._stream.seek(position)
        while self._position < position:
            data = self._stream.read(min(_CHUNK, position - self._position))
            if not data:
                raise tarfile.ReadError("unexpected end of data")
            self._position += len(data)

    def rest_is_empty(self) -> bool:
        """Whether the last header and all behind it are zeros, or nothing."""
        read = 0
        data = self.last
        while data and read <= _HEADERS:
            if data.strip(b"\0"):
                return False
            data = self._stream.read(_CHUNK)
            read += len(data)
        return not data


def read_shard(
    url: str,
    wanted: tuple[str, ...],
    max_bytes: int,
    report: Callable[[str], None],
    *,
    store: ShardStore | None = None,
    allow_pipe: bool = False,
) -> Iterator[dict[str, Any]]:
    """Raw samples of a shard as far as it can be read; never raises for what the shard holds.

    Args:
        url: Path, URL or, where allowed, `pipe:` and a shell command. May be gzipped.
        wanted: Extensions of members to read; others are skipped unread.
        max_bytes: Of a larger member the sample holds None.
        report: Called with the cause of each loss: "broken_shard" (missing, unreachable, cut, no
            tar), "rest_of_shard_lost" (a header is damaged), "repeated_member" (its second copy is
            ignored).
        store: Holds copies of remote shards; without one they are streamed.
        allow_pipe: Run `pipe:` commands.

    Yields:
        webdataset's raw samples: __key__, __url__ (without credentials), extension -> bytes.

    Raises:
        DataError, ConfigError: A pipe that is not allowed, an unusable cache, a missing package.
    """

    def repeated(_: Exception) -> bool:
        report("repeated_member")
        return True

    members = _members(url, wanted, max_bytes, report, store, allow_pipe)
    yield from group_by_keys(members, handler=repeated)


def _members(
    url: str,
    wanted: tuple[str, ...],
    max_bytes: int,
    report: Callable[[str], None],
    store: ShardStore | None,
    allow_pipe: bool,
) -> Iterator[dict[str, Any]]:
    name, cause = plain_url(url), "broken_shard"
    try:
        with _opened(url, store, allow_pipe) as stream:
            forward = _Forward(_unzipped(stream))
            for member in _headers(forward):
                if not member.isreg() or member.sparse or not _is_wanted(member.name, wanted):
                    continue
                data = None
                if member.size <= max_bytes:
                    forward.seek(member.offset_data)
                    forward.left += member.size
                    data = forward.content(member.size)
                    if len(data) < member.size:
                        raise tarfile.ReadError("unexpected end of data")
                yield {"fname": member.name, "data": data, "__url__": name}
            if not forward.rest_is_empty():
                cause = "rest_of_shard_lost"
                raise tarfile.ReadError(cause)
    except (ConfigError, DataError):
        raise
    except Exception:  # foreign bytes: tarfile, zlib and the backends raise a dozen kinds
        report(cause)


def _headers(forward: _Forward) -> Iterator[tarfile.TarInfo]:
    tar = tarfile.open(fileobj=forward, mode="r:", encoding="utf-8", errors="backslashreplace")  # type: ignore[call-overload]  # noqa: SIM115
    while (member := tar.next()) is not None:
        yield member
        forward.left = _HEADERS
        tar.members.clear()  # would grow with the shard


def _is_wanted(name: str, wanted: tuple[str, ...]) -> bool:
    return name.rpartition("/")[2].partition(".")[2].lower() in wanted


def _unzipped(stream: io.BufferedReader[Any]) -> BinaryIO:
    if stream.peek(2)[:2] == b"\x1f\x8b":
        return gzip.GzipFile(fileobj=stream)  # type: ignore[return-value]
    return stream


@contextlib.contextmanager
def _opened(
    url: str, store: ShardStore | None, allow_pipe: bool
) -> Iterator[io.BufferedReader[Any]]:
    if url.lower().startswith("pipe:"):
        if not allow_pipe:
            raise DataError(f"'{plain_url(url)}' would run a shell command; set data.allow_pipe")
        with _piped(url) as stream:
            yield stream
    elif not is_url(url):
        check_plain(url)  # a pipe would be waited for
        with open(url, "rb") as stream:
            yield stream
    elif store is not None:
        with store.open(url) as stream:
            yield stream
    else:
        with io.BufferedReader(RemoteStream(url), _CHUNK) as stream:
            yield stream


@contextlib.contextmanager
def _piped(url: str) -> Iterator[io.BufferedReader[Any]]:
    """A command's output; a command that fails has cut its output short, so that is an error."""
    pipe = gopen_pipe(url)
    try:
        yield pipe.stream
    except BaseException:
        pipe.proc.terminate()  # given up half-way: do not wait for it
        with contextlib.suppress(Exception):
            pipe.close()
        raise
    pipe.close()
