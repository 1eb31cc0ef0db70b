# SPDX-License-Identifier: Apache-2.0
"""A layer's entries without their contents, in a file: what later layers need of it, so that it is never inflated for them again.

A line of JSON with the size of the tar, then one for each entry, in the order of the tar; bytes stand in it as Latin-1. Sandbox only: who
keeps the file sees to it that it is the one that was written.
"""

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from rktd_units.errors import ImageError
from rktd_units.images.tarball import Content, Member
from rktd_units.images.tree import Budget

_ABSENT = -1  # the descriptor of contents that are not at hand
_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


class EntriesError(ImageError):
    """The entries do not do: the layers below are needed themselves."""


def noted_entries(members: Iterator[Member], size: int, file: BinaryIO, budget: Budget) -> Iterator[Member]:
    """The members, each of which is written to the file as it passes. `size`: of the tar, in bytes. Raises TooLargeError."""
    file.write(b"%d\n" % size)
    for member in members:
        path, kind, mode, uid, gid, mtime, link, device, xattrs, content = member
        fields: list[Any] = [path.decode("latin-1"), kind, mode, uid, gid, mtime, link.decode("latin-1"), *device]
        fields.append(None if content is None else (content.size, sum(length for _, _, length in content.segments)))
        fields.append([(key.decode("latin-1"), value.decode("latin-1")) for key, value in xattrs.items()])
        line = _encode(fields).encode() + b"\n"
        budget.take(len(line))  # up to six times what the tar has of it
        file.write(line)
        yield member


def read_entries(file: BinaryIO) -> tuple[int, Iterator[Member]]:
    """The size of the tar, and its members as they were noted, with contents of which only the sizes are known."""
    try:
        return int(file.readline()), _members(file)
    except ValueError as error:
        raise EntriesError("the entries of a layer are damaged") from error


def has_contents(content: Content) -> bool:
    """Whether a content is where it says; else only its size is known."""
    return content.spool != _ABSENT or not content.size


def _members(file: BinaryIO) -> Iterator[Member]:
    try:
        for line in file:
            path, kind, mode, uid, gid, mtime, link, major, minor, sizes, xattrs = json.loads(line)
            # One segment of all that the tar stores: the rest are holes, and count as such.
            content = Content(_ABSENT, sizes[0], ((0, 0, sizes[1]),)) if sizes else None
            names = {key.encode("latin-1"): value.encode("latin-1") for key, value in xattrs}
            yield Member(path.encode("latin-1"), kind, mode, uid, gid, mtime, link.encode("latin-1"), (major, minor), names, content)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise EntriesError("the entries of a layer are damaged") from error
