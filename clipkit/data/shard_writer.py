"""Writes one shard: the same bytes for the same samples, in place whole or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from webdataset import TarWriter

from clipkit.errors import DataError


@dataclass(frozen=True)
class ShardFacts:
    """What was written.

    Attributes:
        samples: How many.
        bytes: Size of the tar.
        sha256: Of the tar.
    """

    samples: int
    bytes: int
    sha256: str


def write_shard(path: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> ShardFacts:
    """Write (key, extension -> bytes) samples to `path` and flush it to disk.

    Members stand in the order of their extensions, with time 0 and no owner, so equal samples give
    equal bytes on any machine. An existing file is replaced.

    Raises:
        DataError: Two neighbours share a key (they would be read as one), or nothing can be
            written there.
    """
    path = path.absolute()
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    count, last = 0, None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # An open file, not a name: webdataset reads "%" and "scheme:" in names its own way.
        # The time is a whole number: tarfile would put a fraction into an extra header.
        with temporary.open("wb") as stream:
            with TarWriter(stream, encoder=False, mtime=0, user="", group="", mode=0o644) as writer:
                for key, members in samples:
                    if key == last:
                        raise DataError(f"{path.name}: two samples in a row have the key '{key}'")
                    writer.write({"__key__": key, **{e: members[e] for e in sorted(members)}})
                    count, last = count + 1, key
            stream.flush()
            os.fsync(stream.fileno())
        digest = hashlib.sha256()
        with temporary.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
        size = temporary.stat().st_size
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return ShardFacts(count, size, digest.hexdigest())
