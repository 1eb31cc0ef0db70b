# SPDX-License-Identifier: Apache-2.0
"""What `podctl cp` copies, as a stream of items: read from one directory, written to another, in one process or at both ends of a pipe.

Each side may be hostile to the other, and change while it is walked: each step is taken on descriptors, by openat2(2) inside the root that
a path belongs to. What is no directory, regular file or link is left out. What arrives over a pipe has names of one component and no more
depth than a walk has; it is believed no more than a file system is.
"""

import errno
import os
import stat
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from rktd_units import mounts

_BLOCK = 1 << 16
_DEPTH_MAX = 200
_NAME_MAX = 255
_LINK_MAX = 4095
_READ_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE, DATA, DIRECTORY, LINK, END, SKIPPED, FAULT = range(1, 8)
_HEAD = struct.Struct("<BIqI")  # kind, mode, time, length of the body
_BODY_MAX = 1 << 20


class Item(NamedTuple):
    """A step: FILE and DIRECTORY open what END closes, DATA is the next part of an open file.

    `body`: a name, data, or for LINK `name NUL target`. SKIPPED tells of a name that is of no kind that is copied, FAULT
    ends all: `errno text NUL file`.
    """

    kind: int
    body: bytes = b""
    mode: int = 0
    time: int = 0  # ns since 1970, of the last change


def read_items(source: int, name: str, depth: int = 0) -> Iterator[Item]:
    """Of what an O_PATH descriptor names, which is taken."""
    try:
        status = os.fstat(source)
        label = os.fsencode(name)
        if stat.S_ISREG(status.st_mode):
            yield Item(FILE, label, stat.S_IMODE(status.st_mode) & 0o777, status.st_mtime_ns)
            data = os.open(f"/proc/self/fd/{source}", os.O_RDONLY | os.O_CLOEXEC)  # known to be a regular file
            try:
                while block := os.read(data, _BLOCK):
                    yield Item(DATA, block)
            finally:
                os.close(data)
            yield Item(END)
        elif stat.S_ISDIR(status.st_mode) and depth < _DEPTH_MAX:
            yield Item(DIRECTORY, label, stat.S_IMODE(status.st_mode) & 0o777, status.st_mtime_ns)
            yield from _read_directory(source, depth)
            yield Item(END)
        elif stat.S_ISLNK(status.st_mode):
            yield Item(LINK, label + b"\0" + os.fsencode(os.readlink("", dir_fd=source)))
        else:
            yield Item(SKIPPED, label)
    finally:
        os.close(source)


def _read_directory(source: int, depth: int) -> Iterator[Item]:
    listed = os.open(f"/proc/self/fd/{source}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for entry in sorted(os.listdir(listed)):
            try:
                child = os.open(entry, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=listed)
            except FileNotFoundError:
                continue  # it went while we looked
            yield from read_items(child, entry, depth + 1)
    finally:
        os.close(listed)


class Writer:
    """Takes items and makes what they tell of as `user` (uid, gid): one thing in a directory, under a name not of the sender's choice.

    The process has no supplementary groups but `groups` from then on.
    """

    def __init__(self, directory: int, name: str, user: tuple[int, int], skip: Callable[[str], None], groups: Sequence[int] = ()) -> None:
        self._name = os.fsencode(name)
        self._is_done = False
        self._user = user
        self._groups = groups
        self._skip = skip
        self._levels: list[tuple[int, int | None]] = [(directory, None)]  # the open directories, and the mode each is to have at its end
        self._file = -1
        self._item = Item(0)  # the open file's own
        self._temporary = f".podctl-{os.getpid()}"

    def write(self, items: Iterable[Item]) -> None:
        """All of them. Raises OSError, with the name of what could not be written; a FAULT of the other side is raised here."""
        try:
            os.setgroups(self._groups)
            for item in items:
                self._take(item)
            if self._file >= 0 or len(self._levels) > 1:
                raise OSError(errno.EPROTO, "the other side has stopped in the middle")
        finally:
            self._close()

    def _take(self, item: Item) -> None:
        if item.kind == DATA and self._file >= 0:
            with self._naming(self._item.body):
                write_all(self._file, item.body)
        elif item.kind == END and self._file >= 0:
            self._end_file()
        elif item.kind == END and len(self._levels) > 1:
            self._end_directory()
        elif item.kind == FAULT:
            raise_fault(item)
        elif item.kind == SKIPPED:
            self._skip(os.fsdecode(item.body))
        elif item.kind in (FILE, DIRECTORY, LINK) and self._file < 0:
            name, nul, target = item.body.partition(b"\0")
            if name in (b"", b".", b"..") or b"/" in name or len(name) > _NAME_MAX or len(target) > _LINK_MAX or b"\0" in target:
                raise OSError(errno.EPROTO, "the other side names a file as none may be named")
            if bool(nul) != (item.kind == LINK) or (self._is_done and len(self._levels) == 1):
                raise OSError(errno.EPROTO, "the other side speaks nonsense")
            if len(self._levels) == 1:
                self._is_done, name = True, self._name
            with self._naming(name), self._acting():
                self._begin(item._replace(body=name), name, target)
        else:
            raise OSError(errno.EPROTO, "the other side speaks nonsense")

    def _begin(self, item: Item, name: bytes, target: bytes) -> None:
        directory = self._levels[-1][0]
        if item.kind == FILE:
            _remove(directory, self._temporary)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file, self._item = os.open(self._temporary, flags, 0o600, dir_fd=directory), item
        elif item.kind == LINK:
            _remove(directory, name)
            os.symlink(target, name, dir_fd=directory)
        elif len(self._levels) > _DEPTH_MAX:
            raise OSError(errno.ENAMETOOLONG, "too many directories in each other")
        else:
            mode: int | None = item.mode & 0o777
            try:
                os.mkdir(name, 0o700, dir_fd=directory)
            except FileExistsError:
                mode = None
            self._levels.append((os.open(name, _READ_DIRECTORY, dir_fd=directory), mode))

    def _end_file(self) -> None:
        with self._naming(self._item.body), self._acting():
            os.fchmod(self._file, self._item.mode & 0o777)
            os.utime(self._file, ns=(self._item.time, self._item.time))
            os.rename(self._temporary, self._item.body, src_dir_fd=self._levels[-1][0], dst_dir_fd=self._levels[-1][0])
        os.close(self._file)
        self._file = -1

    def _end_directory(self) -> None:
        directory, mode = self._levels.pop()
        if mode is not None:
            with self._acting():
                os.fchmod(directory, mode)
        os.close(directory)

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            with self._acting():
                _remove(self._levels[-1][0], self._temporary)
        for directory, _ in self._levels:
            os.close(directory)
        self._levels = []

    @contextmanager
    def _acting(self) -> Iterator[None]:
        """As the user who writes; on an id-mapped volume the host's root is nobody."""
        uid, gid = self._user
        os.setegid(gid)
        os.seteuid(uid)
        try:
            yield
        finally:
            os.seteuid(0)
            os.setegid(0)

    @contextmanager
    def _naming(self, name: bytes) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fsdecode(name)) from error


def open_source(root: int, path: str) -> int:
    """A path inside a root, as an O_PATH descriptor."""
    return mounts.openat2(root, path, os.O_PATH, mounts.RESOLVE_IN_ROOT | mounts.RESOLVE_NO_MAGICLINKS)


def last_name(path: str) -> str:
    """What a copy of it is called."""
    name = os.path.basename(path.rstrip("/"))
    return "root" if name in ("", ".", "..") else name


def find_place(root: int, target: str, name: str, *, inside: bool) -> tuple[int, str]:
    """The directory to write into, and the name there: of an existing directory `name` in it, as cp(1)."""
    resolve = mounts.RESOLVE_IN_ROOT | mounts.RESOLVE_NO_MAGICLINKS if inside else 0

    def open_directory(path: str) -> int:
        return mounts.openat2(root, path or ".", os.O_RDONLY | os.O_DIRECTORY, resolve)

    try:
        return open_directory(target), name
    except NotADirectoryError:
        pass
    except FileNotFoundError:
        if target.endswith("/"):
            raise
    parent, _, last = target.rstrip("/").rpartition("/")
    if last in ("", ".", ".."):
        raise OSError(errno.EISDIR, "is no name for a file", target)
    return open_directory(parent if parent or not target.startswith("/") else "/"), last


def pack_items(items: Iterable[Item]) -> Iterator[bytes]:
    """For a pipe. An OSError of the walk becomes the last item."""
    try:
        for item in items:
            yield _HEAD.pack(item.kind, item.mode, item.time, len(item.body)) + item.body
    except OSError as error:
        yield pack_fault(error)


def pack_fault(error: OSError) -> bytes:
    body = f"{error.errno or 0} {error.strerror}\0{error.filename or ''}".encode("utf-8", "replace")
    return _HEAD.pack(FAULT, 0, 0, len(body)) + body


def raise_fault(item: Item) -> None:
    """What the other side could not do, as its OSError."""
    if item.kind == FAULT:
        number, _, text = item.body.decode("utf-8", "replace").partition(" ")
        known = number.isascii() and number.isdecimal() and len(number) < 5
        reason, _, name = text.partition("\0")
        raise OSError(int(number) if known else errno.EPROTO, reason or "the other side has failed", name)


def write_all(descriptor: int, data: bytes) -> None:
    """To a pipe or file that may take a part at a time."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def unpack_items(read: Callable[[int], bytes]) -> Iterator[Item]:
    """From a pipe; `read` gives at most so many bytes, b"" at the end. Raises OSError for what is not whole."""
    rest = bytearray()

    def take(size: int) -> bytes:
        while len(rest) < size:
            part = read(max(size - len(rest), _BLOCK))
            if not part:
                raise OSError(errno.EPROTO, "the other side has stopped in the middle")
            rest.extend(part)
        data = bytes(rest[:size])
        del rest[:size]
        return data

    while True:
        if not rest:
            if not (part := read(_BLOCK)):
                return
            rest.extend(part)
        kind, mode, time, length = _HEAD.unpack(take(_HEAD.size))
        if length > _BODY_MAX or abs(time) >= 1 << 62:
            raise OSError(errno.EPROTO, "the other side speaks nonsense")
        yield Item(kind, take(length), mode, time)


def _remove(directory: int, name: str | bytes) -> None:
    try:  # noqa: SIM105
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        pass
