# SPDX-License-Identifier: Apache-2.0
"""One file or directory of an export, as a guest holds it: by a descriptor, never by a path.

A guest is hostile. Names have one component; symbolic links are never followed, they mean something in the guest only; only regular files
and directories are opened, so that no device, pipe or socket of the host is reached, and nothing blocks; device nodes are not made.
"""

import errno
import fcntl
import os
import stat
import struct
from array import array
from bisect import bisect_right
from typing import NamedTuple

from rktd_units.share import wire

_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
# Of open(2), the same numbers in 9P2000.L as on x86 and most others.
_OPEN_FLAGS = os.O_ACCMODE | os.O_TRUNC | os.O_APPEND | os.O_SYNC | os.O_DSYNC
_ALWAYS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_MODE_BITS = 0o7777
LISTED_MAX = 64 << 20  # bytes of entries that one guest has kept: a directory of a million names of 30 letters
_START = array("Q").itemsize
_SET_MODE, _SET_UID, _SET_GID, _SET_SIZE, _SET_ATIME, _SET_MTIME, _SET_ATIME_TO, _SET_MTIME_TO = 1, 2, 4, 8, 16, 32, 128, 256
_GETATTR_BASIC = 0x7FF
_FLOCK = struct.Struct("hhqqi4x")  # struct flock, 64 bit
_LOCK_DONE, _LOCK_BLOCKED = 0, 1
_LOCK_KINDS = {0: fcntl.F_RDLCK, 1: fcntl.F_WRLCK, 2: fcntl.F_UNLCK}


class Attributes(NamedTuple):
    """What a guest wants to change, Tsetattr: `valid` says which."""

    valid: int
    mode: int
    uid: int
    gid: int
    size: int
    atime: tuple[int, int]
    mtime: tuple[int, int]


class Devices:
    """Small numbers for file systems, so that inode numbers of several stay apart in a qid."""

    def __init__(self) -> None:
        self._known: dict[int, int] = {}

    def qid(self, status: os.stat_result) -> bytes:
        index = self._known.setdefault(status.st_dev, len(self._known))
        return self.qid_of(status.st_ino + (index << 56), status.st_mode)

    @staticmethod
    def qid_of(path: int, mode: int) -> bytes:
        kind = 0x80 if stat.S_ISDIR(mode) else 0x02 if stat.S_ISLNK(mode) else 0
        return bytes((kind,)) + wire.u32(0) + wire.u64(path)

    def inode(self, device: int, number: int) -> int:
        return number + (self._known.setdefault(device, len(self._known)) << 56)


class Listings:
    """How much the open directories of one guest keep of their entries: without a bound, a directory opened often enough fills the host."""

    def __init__(self) -> None:
        self._left = LISTED_MAX

    def take(self, size: int) -> None:
        if size > self._left:
            raise OSError(errno.ENOMEM, "too many entries")
        self._left -= size

    def give(self, size: int) -> None:
        self._left += size


class File:
    """A fid. `user`: in whose name it was attached. Errors are OSError with errno alone: none has a path of the host."""

    def __init__(self, descriptor: int, user: int, devices: Devices, listings: Listings) -> None:
        self._path = descriptor
        self._open = -1
        self._user = user
        self._devices = devices
        self._listings = listings
        self._listed = bytearray()  # the entries as they are sent, one after another
        self._starts = array("Q")  # where each begins, and the last ends

    def close(self) -> None:
        self._forget()
        for descriptor in {self._path, self._open} - {-1}:
            os.close(descriptor)
        self._path = self._open = -1

    def status(self) -> os.stat_result:
        return os.fstat(self._path)

    def qid(self) -> bytes:
        return self._devices.qid(self.status())

    def walk(self, names: list[bytes]) -> "tuple[list[bytes], File | None]":
        """The qids of what was found one below another, and the last if all were. Raises OSError if not even the first was."""
        here = os.dup(self._path)
        qids: list[bytes] = []
        for name in names:
            try:
                below = os.open(check_name(name), _PATH, dir_fd=here)
            except OSError:
                if not qids:
                    raise
                return qids, None
            finally:
                os.close(here)
            here = below
            try:
                qids.append(self._devices.qid(os.fstat(here)))
            except OSError:
                os.close(here)
                raise
        return qids, File(here, self._user, self._devices, self._listings)

    def open(self, flags: int) -> None:
        mode = self.status().st_mode
        if self._open >= 0:
            raise OSError(errno.EBUSY, "is open")
        if stat.S_ISDIR(mode):
            self._open = os.open(self._magic(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        elif stat.S_ISREG(mode):
            # The kernel follows the link to the very inode; O_NOFOLLOW would be about the link itself.
            self._open = os.open(self._magic(), flags & _OPEN_FLAGS | _ALWAYS & ~os.O_NOFOLLOW)
        else:
            raise OSError(errno.EACCES, "neither a file nor a directory")

    def create(self, name: bytes, flags: int, mode: int, gid: int) -> None:
        """A regular file in this directory, opened; the fid is it from now on."""
        if self._open >= 0:
            raise OSError(errno.EBUSY, "is open")
        name = check_name(name)
        flags = flags & _OPEN_FLAGS | _ALWAYS | os.O_CREAT | os.O_EXCL
        descriptor = os.open(name, flags, mode & 0o777, dir_fd=self._path)
        try:
            self._own(descriptor, gid, mode)
            path = os.open(f"/proc/self/fd/{descriptor}", os.O_PATH | os.O_CLOEXEC)
        except OSError:
            os.close(descriptor)
            raise
        os.close(self._path)
        self._path, self._open = path, descriptor

    def _own(self, descriptor: int, gid: int, mode: int) -> None:
        os.fchown(descriptor, self._user, gid)
        os.fchmod(descriptor, mode & _MODE_BITS)

    def read(self, offset: int, count: int) -> bytes:
        return os.pread(self._opened(), count, offset)

    def write(self, offset: int, data: bytes) -> int:
        return os.pwrite(self._opened(), data, offset)

    def sync(self, *, data_only: bool) -> None:
        (os.fdatasync if data_only else os.fsync)(self._opened())

    def _opened(self) -> int:
        if self._open < 0:
            raise OSError(errno.EBADF, "is not open")
        return self._open

    def _magic(self) -> str:
        return f"/proc/self/fd/{self._path}"

    def read_directory(self, offset: int, count: int) -> bytes:
        """Entries from number `offset` on; the list is that of the last time it was read from its beginning, kept until its end is read."""
        if offset == 0 or not self._starts:
            self._list()
        if offset >= len(self._starts) - 1:
            self._forget()
            return b""
        start = self._starts[offset]
        return bytes(self._listed[start : self._starts[bisect_right(self._starts, start + count) - 1]])

    def _list(self) -> None:
        self._forget()
        status = self.status()
        os.lseek(self._opened(), 0, os.SEEK_SET)
        self._listings.take(_START)
        self._starts.append(0)
        try:
            for name in (b".", b".."):
                self._keep(name, self._devices.inode(status.st_dev, status.st_ino), stat.S_IFDIR)
            with os.scandir(self._opened()) as found:
                for entry in found:
                    kind = stat.S_IFLNK if entry.is_symlink() else stat.S_IFDIR if entry.is_dir(follow_symlinks=False) else stat.S_IFREG
                    self._keep(os.fsencode(entry.name), self._devices.inode(status.st_dev, entry.inode()), kind)
        except OSError:
            self._forget()
            raise

    def _keep(self, name: bytes, inode: int, kind: int) -> None:
        entry = self._devices.qid_of(inode, kind) + wire.u64(len(self._starts)) + bytes((kind >> 12,)) + wire.text(name)
        self._listings.take(len(entry) + _START)
        self._listed += entry
        self._starts.append(len(self._listed))

    def _forget(self) -> None:
        self._listings.give(len(self._listed) + len(self._starts) * _START)
        self._listed = bytearray()
        self._starts = array("Q")

    def attributes(self) -> bytes:
        """The body of Rgetattr."""
        s = self.status()
        numbers = (s.st_nlink, s.st_rdev, s.st_size, s.st_blksize, s.st_blocks)
        times = [part for value in (s.st_atime_ns, s.st_mtime_ns, s.st_ctime_ns, 0) for part in divmod(value, 10**9)]
        head = wire.u64(_GETATTR_BASIC) + self._devices.qid(s) + wire.u32(s.st_mode) + wire.u32(s.st_uid) + wire.u32(s.st_gid)
        return head + b"".join(wire.u64(number) for number in (*numbers, *times, 0, 0))

    def set_attributes(self, wanted: Attributes) -> None:
        valid, path = wanted.valid, self._magic()
        status = self.status()
        if stat.S_ISLNK(status.st_mode) and valid & (_SET_MODE | _SET_SIZE):
            raise OSError(errno.EOPNOTSUPP, "a symbolic link has neither")
        if valid & (_SET_UID | _SET_GID):
            os.chown(path, wanted.uid if valid & _SET_UID else -1, wanted.gid if valid & _SET_GID else -1)
        if valid & _SET_MODE:
            os.chmod(path, wanted.mode & _MODE_BITS)
        if valid & _SET_SIZE:
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            os.truncate(self._open if self._is_writable() else path, wanted.size)
        if valid & (_SET_ATIME | _SET_MTIME):
            self._set_times(status, wanted)

    def _is_writable(self) -> bool:
        return self._open >= 0 and fcntl.fcntl(self._open, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY

    def _set_times(self, status: os.stat_result, wanted: Attributes) -> None:
        import time

        now = time.time_ns()
        atime, mtime = status.st_atime_ns, status.st_mtime_ns
        if wanted.valid & _SET_ATIME:
            atime = wanted.atime[0] * 10**9 + wanted.atime[1] if wanted.valid & _SET_ATIME_TO else now
        if wanted.valid & _SET_MTIME:
            mtime = wanted.mtime[0] * 10**9 + wanted.mtime[1] if wanted.valid & _SET_MTIME_TO else now
        os.utime(self._magic(), ns=(atime, mtime))

    def read_link(self) -> bytes:
        return os.readlink(b"", dir_fd=self._path)

    def symlink(self, name: bytes, target: bytes, gid: int) -> bytes:
        os.symlink(target, check_name(name), dir_fd=self._path)
        return self._adopt(name, gid)

    def make_node(self, name: bytes, mode: int, gid: int) -> bytes:
        """A pipe or a socket: they are the guest's own, whoever makes them. Device nodes are refused, as in a user name space."""
        if stat.S_IFMT(mode) not in (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFREG):
            raise OSError(errno.EPERM, "a device node")
        os.mknod(check_name(name), stat.S_IFMT(mode) | mode & 0o777, dir_fd=self._path)
        return self._adopt(name, gid, mode)

    def make_directory(self, name: bytes, mode: int, gid: int) -> bytes:
        os.mkdir(check_name(name), mode & 0o777, dir_fd=self._path)
        return self._adopt(name, gid, mode)

    def _adopt(self, name: bytes, gid: int, mode: int = -1) -> bytes:
        """Gives what was made just now to the user; its qid."""
        made = os.open(name, _PATH, dir_fd=self._path)
        try:
            os.chown(f"/proc/self/fd/{made}", self._user, gid)
            if mode >= 0:
                os.chmod(f"/proc/self/fd/{made}", mode & _MODE_BITS)
            return self._devices.qid(os.fstat(made))
        finally:
            os.close(made)

    def link(self, name: bytes, target: "File") -> None:
        if stat.S_ISLNK(target.status().st_mode):
            raise OSError(errno.EPERM, "a symbolic link")
        os.link(target._magic(), check_name(name), dst_dir_fd=self._path, follow_symlinks=True)

    def rename(self, old: bytes, directory: "File", new: bytes) -> None:
        os.rename(check_name(old), check_name(new), src_dir_fd=self._path, dst_dir_fd=directory._path)

    def unlink(self, name: bytes, *, directory: bool) -> None:
        (os.rmdir if directory else os.unlink)(check_name(name), dir_fd=self._path)

    def statistics(self) -> bytes:
        """The body of Rstatfs."""
        s = os.fstatvfs(self._path)
        numbers = (s.f_blocks, s.f_bfree, s.f_bavail, s.f_files, s.f_ffree, s.f_fsid)
        head = wire.u32(0x01021997) + wire.u32(s.f_frsize)
        return head + b"".join(wire.u64(number) for number in numbers) + wire.u32(s.f_namemax)

    def lock(self, kind: int, start: int, length: int) -> int:
        """Never waits: the guest's kernel asks again. Held by the open file, so that host and guests see each other's."""
        request = _FLOCK.pack(_LOCK_KINDS[kind], os.SEEK_SET, start, length, 0)
        try:
            fcntl.fcntl(self._opened(), fcntl.F_OFD_SETLK, request)
        except BlockingIOError:
            return _LOCK_BLOCKED
        return _LOCK_DONE

    def find_lock(self, kind: int, start: int, length: int) -> tuple[int, int, int]:
        """The kind, start and length of a lock that is in the way; kind 2 (none) if there is none."""
        request = _FLOCK.pack(_LOCK_KINDS[kind], os.SEEK_SET, start, length, 0)
        found, _, start, length, _ = _FLOCK.unpack(fcntl.fcntl(self._opened(), fcntl.F_OFD_GETLK, request))
        return {native: number for number, native in _LOCK_KINDS.items()}[found], start, length


def check_name(name: bytes) -> bytes:
    """A single component. Raises OSError for what would lead elsewhere."""
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise OSError(errno.EINVAL, "not a name")
    if len(name) > wire.MAX_NAME:
        raise OSError(errno.ENAMETOOLONG, "too long")
    return name
