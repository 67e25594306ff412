"""Regular files that others name, read without waiting and within a limit.

A pipe or a device would never end, and a file of /proc may block or tell no size.
"""

from __future__ import annotations

import errno
import os
import stat

_CHUNK = 1 << 16


def check_plain(file: str | int) -> os.stat_result:
    """Facts of a regular file, by path (links are followed) or descriptor.

    Raises:
        OSError: It is not there, or is something else.
    """
    facts = os.stat(file)
    if not stat.S_ISREG(facts.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")
    return facts


def read_plain(path: str | os.PathLike[str], max_bytes: int) -> bytes | None:
    """Content of a regular file, None where it is longer than `max_bytes`.

    Raises:
        OSError: It is not there, is something else, or would have to be waited for.
    """
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        size = check_plain(file).st_size
        if size > max_bytes:
            return None
        pieces, left = [], max_bytes + 1
        while left and (data := os.read(file, min(left, max(size, _CHUNK)))):
            pieces.append(data)
            left -= len(data)
        return b"".join(pieces) if left else None
    finally:
        os.close(file)
