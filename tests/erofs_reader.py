# SPDX-License-Identifier: Apache-2.0
"""Reads an EROFS image as Linux does, as far as erofs.py writes it, for tests that are not root. It believes nothing: what is odd fails."""

import struct
from typing import NamedTuple

BLOCK = 512
KINDS = {1: 0o10, 2: 0o04, 3: 0o02, 4: 0o06, 5: 0o01, 7: 0o12}  # file types of directory entries to S_IFMT >> 12
PREFIXES = {1: b"user.", 2: b"system.posix_acl_access", 3: b"system.posix_acl_default", 4: b"trusted.", 6: b"security."}


class Found(NamedTuple):
    nid: int
    mode: int
    size: int
    uid: int
    gid: int
    mtime: tuple[int, int]
    links: int
    union: int  # block address or device
    data: bytes
    xattrs: dict[bytes, bytes]


def read_image(image: bytes) -> dict[str, Found]:
    """Every path, "" for the root."""
    magic, _, compatible, bits, _, root, inodes = struct.unpack_from("<IIIBBHQ", image, 1024)
    blocks, meta = struct.unpack_from("<II", image, 1060)
    assert (magic, compatible, bits, blocks * BLOCK) == (0xE0F5E1E2, 2, 9, len(image))
    assert struct.unpack_from("<I", image, 1104) == (0,)  # features that one has to know
    found: dict[str, Found] = {}
    pending = [("", root, root)]
    while pending:
        path, nid, parent = pending.pop()
        inode = found[path] = _read_inode(image, meta * BLOCK, nid)
        if inode.mode >> 12 != 0o04:
            continue
        names = _read_directory(inode.data)
        assert [name for name, _, _ in names] == sorted({name for name, _, _ in names})
        assert [entry for entry in names if entry[0] in (b".", b"..")] == [(b".", nid, 2), (b"..", parent, 2)]
        for name, number, kind in names:
            if name not in (b".", b".."):
                assert _read_inode(image, meta * BLOCK, number).mode >> 12 == KINDS[kind]
                pending.append((f"{path}/{name.decode()}".lstrip("/"), number, nid))
    assert len({inode.nid for inode in found.values()}) == inodes
    return found


def _read_inode(image: bytes, base: int, nid: int) -> Found:
    at = base + nid * 32
    form, count, mode, _, size, union, _, uid, gid, seconds, nanoseconds, links = struct.unpack_from("<HHHHQIIIIqII", image, at)
    assert form in (1, 5)
    assert nid > 0
    xattrs, end = {}, at + 64 + (12 + 4 * (count - 1) if count else 0)
    place = at + 76
    while count and place < end:
        length, index, value = struct.unpack_from("<BBH", image, place)
        name = PREFIXES[index] + image[place + 4 : place + 4 + length]
        xattrs[name] = image[place + 4 + length : place + 4 + length + value]
        place += -(-(4 + length + value) // 4) * 4
    data = b""
    if mode >> 12 in (0o10, 0o04, 0o12):
        start = end if form == 5 else union * BLOCK
        data = image[start : start + size]
        assert len(data) == size
        assert form == 1 or (start + size - 1) // BLOCK == start // BLOCK  # inline data lie in one block
    return Found(nid, mode, size, uid, gid, (seconds, nanoseconds), links, union, data, xattrs)


def _read_directory(data: bytes) -> list[tuple[bytes, int, int]]:
    names = []
    for start in range(0, len(data), BLOCK):
        block = data[start : start + BLOCK]
        count = struct.unpack_from("<H", block, 8)[0] // 12
        entries = [struct.unpack_from("<QHB", block, 12 * index) for index in range(count)]
        ends = [offset for _, offset, _ in entries[1:]] + [len(block)]
        names += [(block[offset:end].rstrip(b"\0"), nid, kind) for (nid, offset, kind), end in zip(entries, ends, strict=True)]
    return names
