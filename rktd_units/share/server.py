# SPDX-License-Identifier: Apache-2.0
"""Answers the requests of one guest's kernel (9P2000.L): a table of what each asks for, over share/files.py. Knows of no transport."""

import errno
import os
import struct
from typing import TYPE_CHECKING

from rktd_units.share import wire
from rktd_units.share.files import Attributes, Devices, File, Listings
from rktd_units.share.wire import Fields, Kind

if TYPE_CHECKING:
    from collections.abc import Callable

VERSION = b"9P2000.L"
MAX_FIDS = 30_000  # a descriptor each, two for an open one: share/device.py sees that there are as many
_MAX_WALK = 16  # names in one request: the protocol's own limit
_MIN_SIZE = 4096
_OVERHEAD = 24  # of an answer beside its data


class Server:
    """The fids of one guest. `root`: the directory that is attached, as a descriptor. More than `max_fids` fail with EMFILE."""

    def __init__(self, root: int, max_size: int, max_fids: int = MAX_FIDS) -> None:
        self._root = root
        self._max_fids = max_fids
        self._limit = max_size
        self._size = max_size
        self._fids: dict[int, File] = {}
        self._devices = Devices()
        self._listings = Listings()
        self._requests: dict[int, Callable[[Fields], bytes]] = {
            Kind.VERSION: self._version,
            Kind.ATTACH: self._attach,
            Kind.FLUSH: lambda _: b"",  # everything is answered at once
            Kind.WALK: self._walk,
            Kind.CLUNK: self._clunk,
            Kind.STATFS: lambda fields: self._file(fields).statistics(),
            Kind.LOPEN: self._open,
            Kind.LCREATE: self._create,
            Kind.READ: self._read,
            Kind.WRITE: self._write,
            Kind.READDIR: self._read_directory,
            Kind.GETATTR: lambda fields: self._file(fields).attributes(),
            Kind.SETATTR: self._set_attributes,
            Kind.READLINK: lambda fields: wire.text(self._file(fields).read_link()),
            Kind.SYMLINK: self._symlink,
            Kind.MKNOD: self._make_node,
            Kind.MKDIR: self._make_directory,
            Kind.LINK: self._link,
            Kind.RENAMEAT: self._rename,
            Kind.UNLINKAT: self._unlink,
            Kind.REMOVE: self._remove,
            Kind.FSYNC: self._sync,
            Kind.LOCK: self._lock,
            Kind.GETLOCK: self._find_lock,
        }

    @property
    def size(self) -> int:
        """The longest message now."""
        return self._size

    def answer(self, request: bytes) -> bytes:
        """A whole message for a whole message. Raises WireError for what is no message."""
        if len(request) < wire.HEADER.size:
            raise wire.WireError("a message without a header")
        _, kind, tag = wire.HEADER.unpack_from(request)
        try:
            action = self._requests.get(kind)
            if action is None:
                raise OSError(errno.EOPNOTSUPP, "not supported")
            body = action(Fields(request[wire.HEADER.size :]))
        except OSError as error:
            return wire.message(Kind.LERROR + 1, tag, wire.u32(error.errno or errno.EIO))
        except (OverflowError, ValueError, KeyError, struct.error):  # numbers that no system call takes
            return wire.message(Kind.LERROR + 1, tag, wire.u32(errno.EINVAL))
        return wire.message(kind + 1, tag, body)

    def close(self) -> None:
        for file in self._fids.values():
            file.close()
        self._fids.clear()

    def _file(self, fields: Fields) -> File:
        file = self._fids.get(fields.u32())
        if file is None:
            raise OSError(errno.EBADF, "no such fid")
        return file

    def _keep(self, number: int, file: File) -> None:
        if number in self._fids or number == wire.NO_FID or len(self._fids) >= self._max_fids:
            file.close()
            raise OSError(errno.EMFILE if len(self._fids) >= self._max_fids else errno.EINVAL, "fid")
        self._fids[number] = file

    def _version(self, fields: Fields) -> bytes:
        wanted, version = fields.u32(), fields.text()
        self.close()
        if wanted < _MIN_SIZE:
            raise OSError(errno.EMSGSIZE, "too small")
        self._size = min(wanted, self._limit)
        return wire.u32(self._size) + wire.text(VERSION if version == VERSION else b"unknown")

    def _attach(self, fields: Fields) -> bytes:
        number, _, _, _, user = fields.u32(), fields.u32(), fields.text(), fields.text(), fields.u32()
        file = File(os.dup(self._root), 0 if user == wire.NO_FID else user, self._devices, self._listings)
        self._keep(number, file)
        return file.qid()

    def _walk(self, fields: Fields) -> bytes:
        number, new, count = fields.u32(), fields.u32(), fields.u16()
        file = self._fids.get(number)
        if file is None or count > _MAX_WALK:
            raise OSError(errno.EBADF if file is None else errno.EINVAL, "no such fid, or too many names")
        qids, found = file.walk([fields.text() for _ in range(count)])
        if found is not None:
            if new == number:  # the fid itself moves
                self._fids.pop(number).close()
            self._keep(new, found)
        return wire.u16(len(qids)) + b"".join(qids)

    def _clunk(self, fields: Fields) -> bytes:
        file = self._fids.pop(fields.u32(), None)
        if file is None:
            raise OSError(errno.EBADF, "no such fid")
        file.close()
        return b""

    def _remove(self, fields: Fields) -> bytes:
        """By a path that it does not have: the kernel has unlinkat instead. The fid goes all the same."""
        self._clunk(fields)
        raise OSError(errno.EOPNOTSUPP, "not supported")

    def _open(self, fields: Fields) -> bytes:
        file = self._file(fields)
        file.open(fields.u32())
        return file.qid() + wire.u32(0)

    def _create(self, fields: Fields) -> bytes:
        file, name, flags, mode, gid = self._file(fields), fields.text(), fields.u32(), fields.u32(), fields.u32()
        file.create(name, flags, mode, gid)
        return file.qid() + wire.u32(0)

    def _read(self, fields: Fields) -> bytes:
        file, offset, count = self._file(fields), fields.u64(), fields.u32()
        data = file.read(offset, min(count, self._size - _OVERHEAD))
        return wire.u32(len(data)) + data

    def _write(self, fields: Fields) -> bytes:
        file, offset = self._file(fields), fields.u64()
        return wire.u32(file.write(offset, fields.rest(fields.u32())))

    def _read_directory(self, fields: Fields) -> bytes:
        file, offset, count = self._file(fields), fields.u64(), fields.u32()
        data = file.read_directory(offset, min(count, self._size - _OVERHEAD))
        return wire.u32(len(data)) + data

    def _set_attributes(self, fields: Fields) -> bytes:
        file = self._file(fields)
        numbers = (fields.u32(), fields.u32(), fields.u32(), fields.u32(), fields.u64())
        times = ((fields.u64(), fields.u64()), (fields.u64(), fields.u64()))
        file.set_attributes(Attributes(*numbers, *times))
        return b""

    def _symlink(self, fields: Fields) -> bytes:
        file, name, target, gid = self._file(fields), fields.text(), fields.text(), fields.u32()
        return file.symlink(name, target, gid)

    def _make_node(self, fields: Fields) -> bytes:
        file, name, mode, _, _, gid = self._file(fields), fields.text(), fields.u32(), fields.u32(), fields.u32(), fields.u32()
        return file.make_node(name, mode, gid)

    def _make_directory(self, fields: Fields) -> bytes:
        file, name, mode, gid = self._file(fields), fields.text(), fields.u32(), fields.u32()
        return file.make_directory(name, mode, gid)

    def _link(self, fields: Fields) -> bytes:
        directory, file, name = self._file(fields), self._file(fields), fields.text()
        directory.link(name, file)
        return b""

    def _rename(self, fields: Fields) -> bytes:
        old_directory, old, new_directory, new = self._file(fields), fields.text(), self._file(fields), fields.text()
        old_directory.rename(old, new_directory, new)
        return b""

    def _unlink(self, fields: Fields) -> bytes:
        file, name, flags = self._file(fields), fields.text(), fields.u32()
        file.unlink(name, directory=bool(flags & 0x200))  # AT_REMOVEDIR
        return b""

    def _sync(self, fields: Fields) -> bytes:
        file = self._file(fields)
        file.sync(data_only=bool(fields.u32()))
        return b""

    def _lock(self, fields: Fields) -> bytes:
        file, kind, _, start, length = self._file(fields), fields.u8(), fields.u32(), fields.u64(), fields.u64()
        return bytes((file.lock(kind, start, length),))

    def _find_lock(self, fields: Fields) -> bytes:
        file, kind, start, length, process = self._file(fields), fields.u8(), fields.u64(), fields.u64(), fields.u32()
        found, start, length = file.find_lock(kind, start, length)
        return bytes((found,)) + wire.u64(start) + wire.u64(length) + wire.u32(process) + wire.text(fields.text())
