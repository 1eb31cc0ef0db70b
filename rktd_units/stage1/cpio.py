# SPDX-License-Identifier: Apache-2.0
"""Archives as the kernel unpacks them into a guest's first root (Documentation/driver-api/early-userspace/buffer-format.rst). Pure.

Several may follow each other in one file, each at a multiple of four bytes; what a later one names replaces what an earlier one had.
"""

import stat
from collections.abc import Iterable, Iterator
from typing import NamedTuple

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"
_TIME_MAX = (1 << 32) - 1


class Entry(NamedTuple):
    """One name. `path` is relative; `mode` with its type; `data`: a file's content or a link's target; `device` (major, minor).

    `mtime` in seconds; one before 1970 or after 2106 is the nearest that the format has.
    """

    path: str
    mode: int
    data: bytes = b""
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    device: tuple[int, int] = (0, 0)


def directory(path: str, mode: int = 0o755, uid: int = 0, gid: int = 0, mtime: int = 0) -> Entry:
    return Entry(path, stat.S_IFDIR | mode, b"", uid, gid, mtime)


def file(path: str, data: bytes, mode: int = 0o644, uid: int = 0, gid: int = 0) -> Entry:
    return Entry(path, stat.S_IFREG | mode, data, uid, gid)


def link(path: str, target: str) -> Entry:
    return Entry(path, stat.S_IFLNK | 0o777, target.encode("utf-8", "surrogateescape"))


def pack_archive(entries: Iterable[Entry], mtime: int = 0) -> Iterator[bytes]:
    """The archive, in parts. Directories that nobody names are made before what is in them, 0755; an entry that comes again replaces.

    `mtime`: of what says no other, in seconds.
    """
    known: set[str] = set()
    number = 0
    for entry in entries:
        parts = entry.path.split("/")
        for count in range(1, len(parts)):
            parent = "/".join(parts[:count])
            if parent not in known:
                known.add(parent)
                number += 1
                yield _pack(number, directory(parent, mtime=mtime))
        known.add(entry.path)
        number += 1
        yield _pack(number, entry if entry.mtime else entry._replace(mtime=mtime))
    yield _pack(0, Entry(_TRAILER, 0))


def _pack(number: int, entry: Entry) -> bytes:
    name = entry.path.encode("utf-8", "surrogateescape") + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    mtime = min(max(entry.mtime, 0), _TIME_MAX)
    fields = (number, entry.mode, entry.uid, entry.gid, links, mtime, len(entry.data), 0, 0, *entry.device, len(name), 0)
    head = _MAGIC + b"".join(b"%08x" % field for field in fields) + name
    return b"".join((head, bytes(-len(head) % 4), entry.data, bytes(-len(entry.data) % 4)))
