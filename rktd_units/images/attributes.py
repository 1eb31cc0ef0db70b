# SPDX-License-Identifier: Apache-2.0
"""Checks what a layer says of an inode: ids, device numbers, extended attributes. Pure.

The kernel's own rules (xattr(7), acl(5)) are applied here, where a fault can be told by path, and with what umoci, running as root,
would make of it: attributes of name spaces that a file system does not know are left out, an access ACL sets the mode's bits.
"""

import stat
import struct
from typing import NamedTuple

from rktd_units.errors import ImageError
from rktd_units.images.tarball import Member, show_path

MAX_ID = 65535
MAX_XATTRS = 20000  # bytes of one inode's, XATTR_COST for each included; file systems of hosts hold less
XATTR_COST = 24
CAPABILITY = b"security.capability"  # the only security attribute of an image; others are labels of a host's own, as in docker and podman
MINIMAL_ACL = 4 + 3 * 8  # bytes of one that names nobody
ACCESS_ACL = b"system.posix_acl_access"
DEFAULT_ACL = b"system.posix_acl_default"

_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 1, 2, 4, 8, 16, 32

Xattrs = tuple[tuple[bytes, bytes], ...]  # sorted by name


class Attributes(NamedTuple):
    """Everything of an inode but its type and content; `mtime` in nanoseconds."""

    mode: int
    uid: int
    gid: int
    mtime: int
    xattrs: Xattrs = ()


WHITEOUT = Attributes(0, 0, 0, 0)  # of the character device 0:0


def with_mark(attributes: Attributes) -> Attributes:
    """Those of a directory that hides the ones of lower layers, in overlayfs's form."""
    return attributes._replace(xattrs=tuple(sorted((*attributes.xattrs, (b"trusted.overlay.opaque", b"y")))))


def checked_attributes(member: Member, place: str) -> Attributes:
    """The attributes of an entry; raises ImageError for those that no host file may get."""
    uid, gid = member.uid, member.gid
    if not (0 <= uid <= MAX_ID and 0 <= gid <= MAX_ID):
        raise ImageError(f"{place}: owner {uid}:{gid} is out of the pod's range of ids, 0 to {MAX_ID}")
    if not -(1 << 62) < member.mtime < (1 << 43) * 1_000_000_000:
        raise ImageError(f"{place}: modification time is out of range")
    if member.kind in (stat.S_IFCHR, stat.S_IFBLK):
        _check_device(member, place)
    mode = 0o777 if member.kind == stat.S_IFLNK else member.mode & 0o7777
    if not member.xattrs:
        return Attributes(mode, uid, gid, member.mtime)
    mode, xattrs = _checked_xattrs(member, mode, place)
    return Attributes(mode, uid, gid, member.mtime, xattrs)


def _check_device(member: Member, place: str) -> None:
    major, minor = member.device
    if (major, minor) == (0, 0) and member.kind == stat.S_IFCHR:
        raise ImageError(f"{place}: a character device 0:0 is overlayfs's mark of a deleted file")
    if not (0 <= major <= 0xFFF and 0 <= minor <= 0x7FFFF):
        raise ImageError(f"{place}: device number {major}:{minor} is out of range")


def _checked_xattrs(member: Member, mode: int, place: str) -> tuple[int, Xattrs]:
    """The attributes to keep, and the mode that an access ACL makes of `mode`."""
    kept: dict[bytes, bytes] = {}
    for name, value in member.xattrs.items():
        where = f"{place}: extended attribute {show_path(name)}"
        if name.startswith(b"trusted."):
            raise ImageError(f"{where}: trusted attributes are the host's, an image has none")
        if name in (ACCESS_ACL, DEFAULT_ACL):
            acl = _checked_acl(name, value, member.kind, where)
            if acl and name == ACCESS_ACL:
                mode = mode & ~0o777 | _acl_mode(acl)
                if len(acl) == MINIMAL_ACL:
                    continue  # the mode says it all
            if acl:
                kept[name] = acl
        elif name.startswith(b"user.") or name == CAPABILITY:
            _check_xattr(name, value, member.kind, where)
            kept[name] = value
    if sum(len(name) + len(value) + XATTR_COST for name, value in kept.items()) > MAX_XATTRS:
        raise ImageError(f"{place}: extended attributes of more than {MAX_XATTRS} bytes")
    return mode, tuple(sorted(kept.items()))


def _check_xattr(name: bytes, value: bytes, kind: int, where: str) -> None:
    if (name.endswith(b".") and name.count(b".") == 1) or len(name) > 255:
        raise ImageError(f"{where}: bad name")
    if name.startswith(b"user.") and kind not in (stat.S_IFREG, stat.S_IFDIR):
        raise ImageError(f"{where}: only files and directories have user attributes")
    if name == CAPABILITY and not _is_capability(value):
        raise ImageError(f"{where}: malformed")


def _checked_acl(name: bytes, value: bytes, kind: int, where: str) -> bytes:
    """The ACL as the kernel would keep it, empty for none."""
    if kind == stat.S_IFLNK:
        return b""
    acl = _normal_acl(value, where)
    if name == DEFAULT_ACL and kind != stat.S_IFDIR:
        raise ImageError(f"{where}: only a directory has a default ACL")
    return acl


def _is_capability(value: bytes) -> bool:
    """struct vfs_cap_data of revision 2 or vfs_ns_cap_data of revision 3, with the one flag that there is, linux/capability.h."""
    return (len(value), value[1:4]) in ((20, b"\0\0\2"), (24, b"\0\0\3")) and value[0] <= 1


def _normal_acl(value: bytes, where: str) -> bytes:
    """A POSIX ACL in the form that the kernel stores, empty for none; linux/posix_acl_xattr.h."""
    if len(value) % 8 != 4 or value[:4] != b"\2\0\0\0":
        raise ImageError(f"{where}: malformed")
    entries = list(struct.iter_unpack("<HHI", value[4:]))
    if not entries:
        return b""
    tags = [tag for tag, _, _ in entries]
    named = [tag for tag in tags if tag in (_USER, _GROUP)]
    single = [tag for tag in tags if tag not in (_USER, _GROUP)]
    masked = [_USER_OBJ, _GROUP_OBJ, _MASK, _OTHER]
    if tags != sorted(tags) or single not in ([_USER_OBJ, _GROUP_OBJ, _OTHER], masked) or (named and single != masked):
        raise ImageError(f"{where}: malformed")
    normal = value[:4]
    for tag, permissions, number in entries:
        if permissions > 7:
            raise ImageError(f"{where}: malformed")
        if tag in (_USER, _GROUP) and number > MAX_ID:
            raise ImageError(f"{where}: id {number} is out of the pod's range of ids, 0 to {MAX_ID}")
        normal += struct.pack("<HHI", tag, permissions, number if tag in (_USER, _GROUP) else 0xFFFFFFFF)
    return normal


def _acl_mode(acl: bytes) -> int:
    """The permission bits that an access ACL stands for: the mask, where there is one, is the group's."""
    rights = {tag: permissions for tag, permissions, _ in struct.iter_unpack("<HHI", acl[4:])}
    group: int = rights.get(_MASK, rights[_GROUP_OBJ])
    return int(rights[_USER_OBJ]) << 6 | group << 3 | int(rights[_OTHER])
