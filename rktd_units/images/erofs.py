# SPDX-License-Identifier: Apache-2.0
"""Writes what one layer changed as an EROFS image around the layer's own tar: contents stay where they were inflated to.

    0      1024 superblock      TAR_START the tar      what the tar has not in one piece      directories and long links      inodes

A block has 512 bytes, as in a tar, so a file's blocks are those of the tar. Everything else is made here from the merged tree, which was
checked entry by entry: the kernel is never shown a field that a stranger wrote. Deletions and opaque directories are in overlayfs's own
form. The same layers always give the same bytes. Format: Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h of Linux.
"""

import os
import stat
import struct
from collections.abc import Iterator
from typing import NamedTuple

from rktd_units.errors import ImageError
from rktd_units.images.attributes import WHITEOUT, Attributes, Xattrs, with_mark
from rktd_units.images.entries import EntriesError, has_contents
from rktd_units.images.records import TAR_START
from rktd_units.images.tarball import Content
from rktd_units.images.tree import Inode, Tree

_BITS = 9
_BLOCK = 1 << _BITS
_SUPER = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQ24x")
_SUPER_AT = 1024
_MAGIC = 0xE0F5E1E2
_HAS_MTIME = 2  # of the compatible features: inodes have modification times
_INODE = struct.Struct("<HHHHQIIIIqII16x")  # struct erofs_inode_extended
_SIZE_AT, _UNION_AT, _LINKS_AT = 8, 16, 44  # of i_size, i_u and i_nlink
_PLAIN, _INLINE = 0, 2  # data layouts
_SLOT = 32  # bytes that a node number counts
_DIRENT = struct.Struct("<QHBx")
_XATTR_HEAD = 12  # bytes of struct erofs_xattr_ibody_header
_PREFIXES = (  # the longest first
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"security.", 6),
    (b"trusted.", 4),
    (b"user.", 1),
)
_TYPES = {stat.S_IFREG: 1, stat.S_IFDIR: 2, stat.S_IFCHR: 3, stat.S_IFBLK: 4, stat.S_IFIFO: 5, stat.S_IFLNK: 7}
_CHUNK = 1 << 20


class _Entry(NamedTuple):
    """A name in a directory."""

    name: bytes
    nid: int
    kind: int


def write_image(tree: Tree, image: int, end: int, uuid: bytes) -> int:
    """Complete the image of the layer that `tree` took last: the file open as `image`, with the layer's tar from TAR_START to `end`.

    Gives its size. All that is written comes out of the tree's budget: a small layer can have large tables, of what is below it.
    Raises TooLargeError, and EntriesError if a content is needed of a layer of which only the entries are known.
    """
    return _Writer(tree, image, end).write(uuid)


class _Writer:
    def __init__(self, tree: Tree, image: int, end: int) -> None:
        self._tree = tree
        self._image = image
        self._tar_end = end
        self._end = _rounded(end, _BLOCK)
        self._blocks = bytearray()  # of directories and long links
        self._places: list[tuple[int, int]] = []  # where in _inodes an address in _blocks is missing, and which
        self._inodes = bytearray(2 * _SLOT)  # node number 0 stays free: readdir(3) takes it for a deleted entry
        self._links: dict[Inode, int] = {}  # the node numbers of files with several names
        self._count = 0

    def write(self, uuid: bytes) -> int:
        tree = self._tree
        root = self._add_inode(stat.S_IFDIR, tree.root.inode.attributes)
        pending = [(tree.root, root, root, True)]
        while pending:
            node, nid, parent, below = pending.pop()
            entries, directories = [_Entry(b".", nid, stat.S_IFDIR), _Entry(b"..", parent, stat.S_IFDIR)], 0
            for name, child in tree.changes(node, below):
                if child is None:
                    entries.append(_Entry(name, self._add_inode(stat.S_IFCHR, WHITEOUT), stat.S_IFCHR))
                elif child.children is None:
                    entries.append(_Entry(name, self._add_file(child.inode), child.inode.kind))
                else:
                    covers, shows = tree.covers(child, below)
                    attributes = with_mark(child.inode.attributes) if covers else child.inode.attributes
                    number = self._add_inode(stat.S_IFDIR, attributes)
                    entries.append(_Entry(name, number, stat.S_IFDIR))
                    pending.append((child, number, nid, shows))
                    directories += 1
            self._fill_directory(nid, sorted(entries), directories)
        return self._finish(root, uuid)

    def _finish(self, root: int, uuid: bytes) -> int:
        for position, block in self._places:
            struct.pack_into("<I", self._inodes, position, self._address(self._end + block * _BLOCK))
        inodes = self._end + len(self._blocks)
        size = _rounded(inodes + len(self._inodes), TAR_START)
        meta = self._address(inodes)
        self._address(size)
        os.ftruncate(self._image, size)
        _write(self._image, self._blocks, self._end)
        _write(self._image, self._inodes, inodes)
        head = bytearray(TAR_START)
        fields = (_MAGIC, 0, _HAS_MTIME, _BITS, 0, root, self._count, 0, 0, size >> _BITS, meta, 0, uuid, b"", 0, 0, 0, 0, 0, 0, 0, 0)
        _SUPER.pack_into(head, _SUPER_AT, *fields)
        _write(self._image, head, 0)
        return size

    def _add_file(self, inode: Inode) -> int:
        """The node number of anything but a directory."""
        if inode.nodes is not None and (nid := self._links.get(inode)) is not None:
            at = nid * _SLOT + _LINKS_AT
            struct.pack_into("<I", self._inodes, at, struct.unpack_from("<I", self._inodes, at)[0] + 1)
            return nid
        content = inode.content
        if content is not None and inode.layer != self._tree.layer and not has_contents(content):
            raise EntriesError("a layer links to a file of a lower one")
        nid = self._add_inode(inode.kind, inode.attributes, content, inode.target, inode.device)
        if inode.nodes is not None:
            self._links[inode] = nid
        return nid

    def _add_inode(
        self, kind: int, attributes: Attributes, content: Content | None = None, target: bytes = b"", device: tuple[int, int] = (0, 0)
    ) -> int:
        mode, uid, gid, mtime, xattrs = attributes
        body = _render_xattrs(xattrs) if xattrs else b""
        count = (len(body) - _XATTR_HEAD) // 4 + 1 if xattrs else 0
        size, layout, union, place = 0, _PLAIN, 0, -1
        if content is not None:
            size, union = content.size, self._place_content(content)
        elif target:
            size = len(target)
            whole = _INODE.size + len(body) + size
            if whole <= _BLOCK:
                left = -len(self._inodes) % _BLOCK
                if left < whole:  # what is inline may not lie in two blocks
                    self._tree.budget.take(left)
                    self._inodes += bytes(left)
                layout, body = _INLINE, body + target
            else:
                place = self._add_blocks(target)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            major, minor = device
            union = minor & 0xFF | major << 8 | (minor & ~0xFF) << 12  # new_encode_dev() of linux/kdev_t.h
        position = len(self._inodes)
        body += bytes(-len(body) % (2 * _SLOT))
        self._tree.budget.take(_INODE.size + len(body))
        if place >= 0:
            self._places.append((position + _UNION_AT, place))
        self._count += 1
        form, time = 1 | layout << 1, divmod(mtime, 1_000_000_000)
        self._inodes += _INODE.pack(form, count, kind | mode, 0, size, union, self._count, uid, gid, *time, 1)
        self._inodes += body
        return position // _SLOT

    def _fill_directory(self, nid: int, entries: list[_Entry], directories: int) -> None:
        data = b"".join(_directory_blocks(entries))
        position = nid * _SLOT
        self._places.append((position + _UNION_AT, self._add_blocks(data)))
        struct.pack_into("<Q", self._inodes, position + _SIZE_AT, len(data))
        struct.pack_into("<I", self._inodes, position + _LINKS_AT, 2 + directories)

    def _add_blocks(self, data: bytes) -> int:
        """The number of the first block in _blocks."""
        self._tree.budget.take(_rounded(len(data), _BLOCK))
        first = len(self._blocks) >> _BITS
        self._blocks += data
        self._blocks += bytes(-len(data) % _BLOCK)
        return first

    def _place_content(self, content: Content) -> int:
        """The block address of a file's contents: in the tar, or where a copy of them is made."""
        if not content.size:
            return 0
        if content.spool == self._image and len(content.segments) == 1:
            offset, start, size = content.segments[0]
            if not offset and size == content.size and not start % _BLOCK and self._is_padded(start + size):
                return self._address(start)
        own = content.spool == self._image  # then its holes are paid for already
        cost = sum(length for _, _, length in content.segments) if own else content.size
        self._tree.budget.take(_rounded(cost, _BLOCK))
        at, self._end = self._end, self._end + _rounded(content.size, _BLOCK)
        address = self._address(at)
        os.ftruncate(self._image, self._end)  # holes stay holes
        for offset, start, size in content.segments:
            _copy(content.spool, start, size, self._image, at + offset)
        return address

    def _is_padded(self, end: int) -> bool:
        """Whether the rest of a block is zeros, which a program sees when it maps the file into its memory."""
        rest = -end % _BLOCK
        return not rest or os.pread(self._image, rest, end).count(0) == rest

    def _address(self, offset: int) -> int:
        if offset >> _BITS >= 1 << 32:
            raise ImageError(f"image is too large: a layer of more than {_BLOCK << 32} bytes")
        return offset >> _BITS


def _directory_blocks(entries: list[_Entry]) -> Iterator[bytes]:
    """Each block has its entries, then their names; all but the last are padded."""
    begin, used = 0, 0
    for index, entry in enumerate(entries):
        cost = _DIRENT.size + len(entry.name)
        if used + cost > _BLOCK:
            yield _directory_block(entries[begin:index]).ljust(_BLOCK, b"\0")
            begin, used = index, 0
        used += cost
    yield _directory_block(entries[begin:])


def _directory_block(entries: list[_Entry]) -> bytes:
    block, offset = bytearray(), _DIRENT.size * len(entries)
    for name, nid, kind in entries:
        block += _DIRENT.pack(nid, offset, _TYPES[kind])
        offset += len(name)
    for entry in entries:
        block += entry.name
    return bytes(block)


def _render_xattrs(xattrs: Xattrs) -> bytes:
    body = bytearray(_XATTR_HEAD)
    for name, value in xattrs:
        prefix, index = next(pair for pair in _PREFIXES if name.startswith(pair[0]))
        rest = name[len(prefix) :]
        body += struct.pack("<BBH", len(rest), index, len(value)) + rest + value
        body += bytes(-len(body) % 4)
    return bytes(body)


def _rounded(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def _copy(source: int, start: int, size: int, target: int, at: int) -> None:
    while size:
        data = os.pread(source, min(size, _CHUNK), start)
        if not data:
            raise OSError("the unpacked layer was cut off")
        _write(target, data, at)
        start, at, size = start + len(data), at + len(data), size - len(data)


def _write(fd: int, data: bytes | bytearray, at: int) -> None:
    with memoryview(data) as view:
        done = 0
        while done < len(view):
            done += os.pwrite(fd, view[done:], at + done)
