# SPDX-License-Identifier: Apache-2.0
"""Writes what one layer changed as a canonical tar, the layer of an ACI: the same tree always gives the same bytes.

Sorted names, parents first, one inode once and hard links after it; deletions and opaque directories in overlayfs's own form.
Only the headers are made here (into a file: an image may have a million); contents are sent from where they lie by the kernel.
"""

import os
import stat
import tempfile
from array import array
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from rktd_units.images.attributes import WHITEOUT, Attributes, Xattrs, with_mark
from rktd_units.images.entries import EntriesError, has_contents
from rktd_units.images.tarball import BLOCK, Content
from rktd_units.images.tree import Inode, Node, Tree

BATCH = 1 << 18  # bytes per write(2)
ZEROS = bytes(1 << 16)
NO_NAMES = bytes(64)  # of user and group
TYPES = {
    stat.S_IFREG: b"0",
    stat.S_IFLNK: b"2",
    stat.S_IFCHR: b"3",
    stat.S_IFBLK: b"4",
    stat.S_IFDIR: b"5",
    stat.S_IFIFO: b"6",
}


class Delta(NamedTuple):
    """One layer's changes: header blocks, and for each entry how many bytes of them are its own and what content follows."""

    headers: BinaryIO
    lengths: "array[int]"
    contents: list[Content | None]


def build_delta(tree: Tree, directory: str) -> Delta:
    """The delta of the layer that `tree` took last. The headers go to an unnamed file in `directory`.

    The budget pays for them as they are written, and for all that send_delta() will write: nothing is sent that is too much. Raises
    EntriesError if a content is needed of a layer of which only the entries are known, and TooLargeError.
    """
    delta = Delta(tempfile.TemporaryFile(dir=directory), array("L"), [])  # noqa: SIM115 - its owner closes it
    try:
        tree.budget.take(2 * BLOCK)
        for header, content in _entries(tree):
            tree.budget.take(len(header) + (0 if content is None else content.size + -content.size % BLOCK))
            delta.headers.write(header)
            delta.lengths.append(len(header))
            delta.contents.append(content)
        delta.headers.seek(0)
    except BaseException:
        delta.headers.close()
        raise
    return delta


def send_delta(delta: Delta, pipe: int) -> None:
    """Writes the tar to `pipe`. Raises OSError, BrokenPipeError among them."""
    batch = bytearray()
    for length, content in zip(delta.lengths, delta.contents, strict=True):
        batch += delta.headers.read(length)
        if content is not None and content.size:
            at = 0
            for offset, start, size in content.segments:
                _send_zeros(pipe, batch, offset - at)
                _send_stored(pipe, batch, content.spool, start, size)
                at = offset + size
            _send_zeros(pipe, batch, content.size - at)
            batch += bytes(-content.size % BLOCK)
        if len(batch) >= BATCH:
            _flush(pipe, batch)
    batch += bytes(2 * BLOCK)
    _flush(pipe, batch)


def _send_stored(pipe: int, batch: bytearray, spool: int, start: int, size: int) -> None:
    if size <= 1 << 15:
        batch += os.pread(spool, size, start)
        return
    _flush(pipe, batch)
    while size:
        sent = os.sendfile(pipe, spool, start, size)
        if not sent:
            raise OSError("spool file was cut off")
        start, size = start + sent, size - sent


def _send_zeros(pipe: int, batch: bytearray, size: int) -> None:
    while size:
        part = min(size, len(ZEROS))
        batch += ZEROS[:part]
        size -= part
        if len(batch) >= BATCH:
            _flush(pipe, batch)


def _flush(pipe: int, batch: bytearray) -> None:
    with memoryview(batch) as view:
        at = 0
        while at < len(view):
            at += os.write(pipe, view[at:])
    batch.clear()


def _entries(tree: Tree) -> Iterator[tuple[bytes, Content | None]]:
    """Header and content of each entry. `below` tells that lower layers show through where the node is."""
    first: dict[Inode, bytes] = {}
    pending: list[tuple[Node | None, bytes, bool]] = [(tree.root, b"", True)]
    while pending:
        node, path, below = pending.pop()
        if node is None:
            yield _headers(path, b"3", WHITEOUT, 0, b"", (0, 0)), None
            continue
        inode = node.inode
        if node.children is not None:
            covers, below = tree.covers(node, below)
            attributes = with_mark(inode.attributes) if covers else inode.attributes
            yield _headers(path + b"/" if path else b"./", b"5", attributes, 0, b"", (0, 0)), None
            prefix = path + b"/" if path else b""
            pending += ((child, prefix + name, below) for name, child in reversed(tree.changes(node, below)))
            continue
        if inode.nodes is not None and (earlier := first.setdefault(inode, path)) is not path:
            yield _headers(path, b"1", inode.attributes, 0, earlier, (0, 0)), None
            continue
        content = inode.content
        if content is not None and inode.layer != tree.layer:
            if not has_contents(content):
                raise EntriesError("a layer links to a file of a lower one")
            tree.budget.take(content.size)
        yield _headers(path, TYPES[inode.kind], inode.attributes, content.size if content else 0, inode.target, inode.device), content


def _headers(path: bytes, flag: bytes, attributes: Attributes, size: int, link: bytes, device: tuple[int, int]) -> bytes:
    """A ustar header, and a pax header before it for what does not fit."""
    mode, uid, gid, mtime, xattrs = attributes
    seconds, nanoseconds = divmod(mtime, 1_000_000_000)
    pax = b""
    if len(path) > 100 or len(link) > 100 or nanoseconds or not 0 <= seconds < 1 << 33 or size >= 1 << 33 or xattrs:
        pax = _pax(path, link, size, (seconds, nanoseconds), xattrs)
        seconds = seconds if 0 <= seconds < 1 << 33 else 0
        stored_size = size if size < 1 << 33 else 0
        header = _ustar(path[:100], flag, (mode, uid, gid, stored_size, seconds), link[:100], device)
        name = _ustar(b"pax", b"x", (0o644, 0, 0, len(pax), 0), b"", (0, 0))
        return name + pax + bytes(-len(pax) % BLOCK) + header
    return _ustar(path, flag, (mode, uid, gid, size, seconds), link, device)


def _ustar(path: bytes, flag: bytes, numbers: tuple[int, int, int, int, int], link: bytes, device: tuple[int, int]) -> bytes:
    # The device numbers are told though they be zero: some readers leave out, without a word, a device whose fields are empty.
    block = b"%b%07o\0%07o\0%07o\0%011o\0%011o\0        %c%bustar\x0000%b%07o\0%07o\0" % (
        path.ljust(100, b"\0"),
        *numbers,
        flag,
        link.ljust(100, b"\0"),
        NO_NAMES,
        *device,
    )
    return b"%b%06o\0 %b" % (block[:148], sum(block), block[156:].ljust(BLOCK - 156, b"\0"))


def _pax(path: bytes, link: bytes, size: int, time: tuple[int, int], xattrs: Xattrs) -> bytes:
    """The records of what does not fit into a header. A time is whole seconds and nanoseconds to be added, below zero, too."""
    records = []
    if len(path) > 100:
        records.append(b"path=" + path)
    if len(link) > 100:
        records.append(b"linkpath=" + link)
    if size >= 1 << 33:
        records.append(b"size=%d" % size)
    if time[1] or not 0 <= time[0] < 1 << 33:
        records.append(b"mtime=%d.%09d" % time)
    records += (b"SCHILY.xattr.%b=%b" % pair for pair in xattrs)
    return b"".join(map(_record, records))


def _record(text: bytes) -> bytes:
    """`LENGTH text\\n`, the length counting itself."""
    length = len(text) + 2
    while length != len(text) + 2 + len(str(length)):
        length = len(text) + 2 + len(str(length))
    return b"%d %b\n" % (length, text)
