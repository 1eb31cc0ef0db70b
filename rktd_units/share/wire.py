# SPDX-License-Identifier: Apache-2.0
"""The numbers and fields of 9P2000.L as the Linux kernel speaks it (Documentation/filesystems/9p.rst, include/net/9p/9p.h). Pure."""

import struct
from enum import IntEnum

HEADER = struct.Struct("<IBH")  # size with itself, type, tag
MAX_NAME = 255
NO_FID = 0xFFFFFFFF


class Kind(IntEnum):
    """Types of requests; an answer's is one more."""

    LERROR = 6
    STATFS = 8
    LOPEN = 12
    LCREATE = 14
    SYMLINK = 16
    MKNOD = 18
    RENAME = 20
    READLINK = 22
    GETATTR = 24
    SETATTR = 26
    XATTRWALK = 30
    XATTRCREATE = 32
    READDIR = 40
    FSYNC = 50
    LOCK = 52
    GETLOCK = 54
    LINK = 70
    MKDIR = 72
    RENAMEAT = 74
    UNLINKAT = 76
    VERSION = 100
    AUTH = 102
    ATTACH = 104
    FLUSH = 108
    WALK = 110
    READ = 116
    WRITE = 118
    CLUNK = 120
    REMOVE = 122


class WireError(Exception):
    """A message that cannot be read."""


class Fields:
    """The fields of a message, taken one after another. Raises WireError where it is too short."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def _take(self, length: int) -> bytes:
        end = self._at + length
        if end > len(self._data):
            raise WireError("a message ends too soon")
        part = self._data[self._at : end]
        self._at = end
        return part

    def u8(self) -> int:
        return self._take(1)[0]

    def u16(self) -> int:
        return int.from_bytes(self._take(2), "little")

    def u32(self) -> int:
        return int.from_bytes(self._take(4), "little")

    def u64(self) -> int:
        return int.from_bytes(self._take(8), "little")

    def text(self) -> bytes:
        return self._take(self.u16())

    def rest(self, length: int) -> bytes:
        return self._take(length)


def u16(value: int) -> bytes:
    return value.to_bytes(2, "little")


def u32(value: int) -> bytes:
    return (value & 0xFFFFFFFF).to_bytes(4, "little")


def u64(value: int) -> bytes:
    return (value & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "little")


def text(value: bytes) -> bytes:
    return u16(len(value)) + value


def message(kind: int, tag: int, body: bytes) -> bytes:
    return HEADER.pack(HEADER.size + len(body), kind, tag) + body
