"""One pass over the 512-byte headers of a tar: its members, and what is damaged.

Every header's checksum is tested. Behind a broken one the walk goes on at the next block that is a
header by checksum and magic, so that one flipped byte costs a member and not the rest of the tar.
Kinds of members are taken as Python's tarfile takes them.
"""

from __future__ import annotations

import os
import re
import zlib
from dataclasses import dataclass, field

import numpy as np

BLOCK = 512
_ZEROS = bytes(BLOCK)
_MAX_NAME = 4096  # as long as Linux lets a path be
_MAX_EXTENDED = 64 * 1024
_MAX_PADDING = 1 << 20
_CHUNK = 4 << 20
_TOLD = 3  # damages that are told one by one
_FILES = b"0\x007"
_BARE = b"123456"  # links, devices, folders, pipes: whatever size they claim, no content follows
_EXTENDED = b"LKxXg"  # they say more of the next header


@dataclass
class Scan:
    """What one tar holds.

    Attributes:
        names: Of the regular files, in order.
        offsets: Byte at which each one's content begins.
        sizes: Bytes of content.
        gaps: Bytes at which members may be missing.
        damage: What is wrong with the tar, "" if nothing.
        notes: What is odd and costs nothing, "" if nothing.
        end_mark: Whether the archive has its end; a tar cut between two members has none.
    """

    names: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    gaps: list[int] = field(default_factory=list)
    damage: str = ""
    notes: str = ""
    end_mark: bool = False


def scan_tar(path: str) -> Scan:
    """Members of a tar (ustar, GNU and pax names and sizes).

    Raises:
        OSError: The file cannot be read.
    """
    with open(path, "rb", buffering=0) as file:
        return _Walk(file.fileno()).run()


class _Damage(Exception):
    """What is wrong at the current header."""


class _Walk:
    """From header to header."""

    def __init__(self, file: int) -> None:
        self.file, self.end = file, os.fstat(file).st_size
        self.found = Scan()
        self.problems: list[str] = []
        self.before_gap = self.sized = self.unknown = 0
        self.inside = 0  # up to here, headers may be content of the member whose own is broken
        self._forget()

    def _forget(self, after_gap: bool = False) -> None:
        """No extended header stands before the next one."""
        self.next_name: str | None = None
        self.next_size: int | None = None
        self.extended, self.after_gap = False, after_gap

    def run(self) -> Scan:
        following: int | None = 0
        while following is not None:
            position = following
            try:
                following = self._step(position)
            except _Damage as problem:
                following = self._resync(position, str(problem))
            except ValueError:
                following = self._resync(position, f"broken header at byte {position}")
        more = len(self.problems) - _TOLD
        told = [*self.problems[:_TOLD], *([f"{more} more places"] if more > 0 else [])]
        behind = len(self.found.names) - self.before_gap
        if self.found.gaps and behind:
            told.append(f"{behind} members behind the last one")
        self.found.damage = "; ".join(told)
        odd = [
            (self.sized, "links, folders or devices claim a size and have no content"),
            (self.unknown, "members of unknown kinds are passed over"),
        ]
        self.found.notes = "; ".join(f"{count} {what}" for count, what in odd if count)
        return self.found

    def _step(self, position: int) -> int | None:
        """Read the header at `position`; where the next one stands, None at the end."""
        header = os.pread(self.file, BLOCK, position)
        if header == _ZEROS:
            self._end(position)
            return None
        if len(header) < BLOCK:
            if position == self.end and position and not self.extended:
                return None
            raise _Damage("cut short" if header or position else "empty file")
        if not checksum_ok(header):
            raise ValueError
        size, kind, content = _number(header[124:136]), header[156:157], position + BLOCK
        if kind in _EXTENDED:
            if size > _MAX_EXTENDED:
                raise _Damage(f"oversized extended header at byte {position}")
            self._extend(kind, os.pread(self.file, size, content))
            return content + -(-size // BLOCK) * BLOCK
        if self.next_size is not None:
            size = self.next_size
        own = _name(header)
        if kind in _BARE or (kind == b"\0" and own.endswith("/")):  # the oldest tars' folders
            self.sized += size > 0
            self._forget()
            return content
        name = self.next_name or own
        if content + size > self.end:
            raise _Damage(f"cut short inside '{name[:80]}'")
        # Behind a gap, a name of full length may be a part of one whose header lies in the gap.
        if kind in _FILES and (self.next_name or not (self.after_gap and header[99])):
            self.found.names.append(name)
            self.found.offsets.append(content)
            self.found.sizes.append(size)
        self.unknown += kind not in _FILES
        self._forget()
        return content + -(-size // BLOCK) * BLOCK

    def _extend(self, kind: bytes, data: bytes) -> None:
        self.extended = True
        if kind == b"L":
            self.next_name = _text(data)
        elif kind in b"xX":
            self.next_name, self.next_size = _pax(data)
        if self.next_name and len(self.next_name) > _MAX_NAME:
            raise ValueError

    def _end(self, position: int) -> None:
        """A block of zeros ends the archive, if no more than padding follows.

        Raises:
            _Damage: More follows.
        """
        left = self.end - position
        if left > _MAX_PADDING or os.pread(self.file, left, position).strip(b"\0"):
            raise _Damage(f"data behind the end-of-archive mark at byte {position}")
        self.found.end_mark = True

    def _resync(self, position: int, problem: str) -> int | None:
        """Note a damage and find the next header behind it."""
        following = self._next_header(position + BLOCK)
        if following is not None and self._ends_a_tar_inside(position):
            self._forget(after_gap=True)
            return following
        if following is not None:
            if problem.startswith("cut short"):  # the rest is there: the size was wrong
                problem = f"broken header at byte {position}"
            problem += f", {following - position} bytes skipped"
        elif position == 0:
            problem = self._what_else(problem)
        self.problems.append(problem)
        self.found.gaps.append(position)
        self.before_gap = len(self.found.names)
        try:
            size = _number(os.pread(self.file, BLOCK, position)[124:136])
            self.inside = position + BLOCK + size
        except (ValueError, IndexError):
            self.inside = self.end
        self._forget(after_gap=True)
        return following

    def _ends_a_tar_inside(self, position: int) -> bool:
        """Whether the end mark (two blocks) here is that of a tar within a member.

        So it is behind a broken header, where its content reaches as far or nobody knows. What was
        found since lies in that tar: it is left out.
        """
        if position >= self.inside or os.pread(self.file, 2 * BLOCK, position) != 2 * _ZEROS:
            return False
        count = len(self.found.names) - self.before_gap
        for found in (self.found.names, self.found.offsets, self.found.sizes):
            del found[self.before_gap :]
        self.problems[-1] += f", {count} members of a tar inside it left out"
        return True

    def _what_else(self, problem: str) -> str:
        """What a file is that begins with no header, else `problem`."""
        head = os.pread(self.file, BLOCK, 0)
        if not head or (checksum_ok(head) if len(head) == BLOCK else b"\0" in head):
            return problem
        begin = repr(head[:24].splitlines()[0].rstrip())
        return f"not a tar (begins with {begin[1:]})"

    def _next_header(self, position: int) -> int | None:
        size = 16 * BLOCK  # most gaps are short, and many of them must not cost a chunk each
        while position < self.end:
            data = os.pread(self.file, size, position)
            blocks = np.frombuffer(data, np.uint8, len(data) // BLOCK * BLOCK).reshape(-1, BLOCK)
            magic = np.frombuffer(b"ustar", np.uint8)
            for i in np.flatnonzero((blocks[:, 257:262] == magic).all(1)).tolist():
                if checksum_ok(data[i * BLOCK : (i + 1) * BLOCK]):
                    return position + i * BLOCK
            position += size
            size = min(2 * size, _CHUNK)
        return None


def checksum_ok(header: bytes) -> bool:
    """Whether the sum of a header's bytes, the checksum field as blanks, is what it says."""
    try:
        stored = _number(header[148:156])
    except ValueError:
        return False
    # The low half of Adler-32 is 1 + the sum modulo 65,521: 20 times faster than sum().
    blanked = header[:148] + b"        " + header[156:]
    return (1 + stored) % 65_521 == zlib.adler32(blanked) & 0xFFFF


def is_unsafe(name: str) -> bool:
    """Whether a name points out of the folder that a tar is unpacked into."""
    if re.match(r"/|\\(?!x[0-9a-f]{2})", name):  # \xe9 begins a name that is not UTF-8
        return True
    return ".." in name and ".." in name.replace("\\", "/").split("/")


def _number(data: bytes) -> int:
    """A header's number: octal digits, or base 256 for sizes of 8 GB and more.

    Raises:
        ValueError: It is neither, or negative.
    """
    if data[0] & 0x80:
        return int.from_bytes(data[1:], "big")
    value = int(data.split(b"\0", 1)[0].strip() or b"0", 8)
    if value < 0:  # would walk backwards, for ever
        raise ValueError("negative number")
    return value


def _text(data: bytes) -> str:
    # What is not UTF-8 stays apart: two names never become one.
    return data.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")


def _name(header: bytes) -> str:
    if header[345] and header[257:262] == b"ustar":
        return f"{_text(header[345:500])}/{_text(header[:100])}"
    return _text(header[:100])


def _pax(content: bytes) -> tuple[str | None, int | None]:
    """Name and size of a pax header.

    Raises:
        ValueError: The size is not a whole number from 0.
    """
    name = size = None
    while content:
        length, _, _ = content.partition(b" ")
        if not length.isdigit() or int(length) < 5:
            break
        record, content = content[: int(length)], content[int(length) :]
        key, _, value = record[len(length) + 1 : -1].partition(b"=")
        if key == b"path":
            name = _text(value)
        elif key == b"size":
            if not value.isdigit():
                raise ValueError(f"pax size {value[:20]!r}")
            size = int(value)
    return name, size
