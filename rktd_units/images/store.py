# SPDX-License-Identifier: Apache-2.0
"""The image store in /var/lib/rktd: blobs, layers with their records, and what each reference was resolved to.

Everything appears by rename under its final name, complete and synced; a name starting with a dot, and all of work/, is garbage after a
crash. All directories are 0700 and root's. In every pod start: imports next to nothing.
"""

import errno
import fcntl
import hashlib
import os
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple, TypeVar

from rktd_units.errors import PASSING, ConfigError, ImageError, StateError, TemporaryError
from rktd_units.images.records import (
    TAR_START,
    UNREADABLE,
    VERSION,
    ImageRecord,
    LayerRecord,
    is_pin_name,
    load_record,
    pin_name,
    read_readable,
    record_names,
    reference_name,
    save_record,
    sync_directory,
)
from rktd_units.images.reference import is_digest
from rktd_units.images.verity import enable_verity, measure_verity
from rktd_units.paths import Layout
from rktd_units.runfiles import lock

_CHUNK = 1 << 20
_CONFIG_MAX = 1 << 20  # bytes of a configuration file
_T = TypeVar("_T")
_PATIENCE = 10.0  # seconds that a collection waits for the store to be idle


@contextmanager
def told_errors() -> Iterator[None]:
    """Turn what the file system refuses into our errors: TemporaryError where it may pass (a full disk), else StateError."""
    try:
        yield
    except OSError as error:
        kind = TemporaryError if error.errno in PASSING else StateError
        raise kind(f"image store: {error.strerror}: {error.filename}" if error.filename else f"image store: {error.strerror}") from error


def open_regular(path: str, *, directory: int | None = None) -> int:
    """A descriptor of a regular file, not of a link, pipe or device in its place. Raises OSError or ImageError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY, dir_fd=directory)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise ImageError(f"{path}: must be a regular file") from None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ImageError(f"{path}: must be a regular file")
    return fd


def read_config(path: str) -> tuple[bytes, os.stat_result]:
    """A configuration file of the administrator's, and the status of the very file that was read. Raises ConfigError."""
    try:
        with open(open_regular(os.path.realpath(path)), "rb") as file:
            data, status = file.read(_CONFIG_MAX + 1), os.fstat(file.fileno())
    except (OSError, ImageError) as error:
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > _CONFIG_MAX:
        raise ConfigError(f"{path}: is larger than {_CONFIG_MAX} bytes")
    return data, status


def hash_file(fd: int, limit: int = sys.maxsize) -> str:
    """The sha256 of the file from its start, in hexadecimal; of one that is larger than `limit` bytes, of its begin only."""
    digest = hashlib.sha256()
    _update(digest, fd, 0, limit + 1)
    return digest.hexdigest()


def hash_path(path: str) -> str:
    """As hash_file, of a regular file."""
    fd = open_regular(path)
    try:
        return hash_file(fd)
    finally:
        os.close(fd)


class LayerHash(NamedTuple):
    """What the file of a layer is. Nobody has to be believed what its tar is: its digest is the diff id, or is not."""

    tar_size: int
    tar: str  # sha256, hexadecimal
    rest: str  # of all that is not the tar


def hash_image(fd: int, tar_size: int) -> LayerHash:
    """Of the whole file, in one pass. `tar_size` is what is said of the tar; the result has what there is of that, at most."""
    tar_size = max(min(tar_size, os.fstat(fd).st_size - TAR_START), 0)
    tar, rest, end = hashlib.sha256(), hashlib.sha256(), TAR_START + tar_size
    _update(rest, fd, 0, TAR_START)
    _update(tar, fd, TAR_START, end)
    _update(rest, fd, end, sys.maxsize)
    return LayerHash(tar_size, tar.hexdigest(), rest.hexdigest())


def _update(digest: "hashlib._Hash", fd: int, start: int, end: int) -> None:
    """Hash the bytes of the file from `start` to `end`, or to its end."""
    view = memoryview(bytearray(_CHUNK))
    while start < end and (count := os.preadv(fd, [view[: min(end - start, _CHUNK)]], start)):
        digest.update(view[:count])
        start += count


def own_file(fd: int) -> bool:
    """Take a file from who wrote it; False if he, or anybody, could still write it, since he has it open: fcntl(2), F_SETLEASE."""
    os.fchown(fd, os.geteuid(), os.getegid())
    os.fchmod(fd, 0o644)
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)  # who opens it at this moment breaks the lease: SIGIO, its own signal, would end us
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError:
        return False
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return True


def copy_hashed(source: int, target: int, limit: int) -> tuple[str, int]:
    """Copy to the end of `source`, `limit` bytes at most (else ImageError): sha256 in hexadecimal, and the size, of what was written."""
    digest, size, buffer = hashlib.sha256(), 0, bytearray(_CHUNK)
    view = memoryview(buffer)
    while count := _read_named(source, buffer):
        size += count
        if size > limit:
            raise ImageError(f"is larger than {limit} bytes")
        digest.update(view[:count])
        written = 0
        while written < count:
            written += os.write(target, view[written:count])
    return digest.hexdigest(), size


def _read_named(fd: int, buffer: bytearray) -> int:
    """As readv(2), but what it raises names the file."""
    try:
        return os.readv(fd, [buffer])
    except OSError as error:
        error.filename = os.readlink(f"/proc/self/fd/{fd}")
        raise


def _layer_record(fd: int, found: LayerHash, verity: str, entries: str) -> LayerRecord:
    status = os.fstat(fd)
    return LayerRecord(VERSION, *found, status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, verity, entries)


class Store:
    """The store of one Layout. Safe for parallel use by processes and threads."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._good: set[str] = set()  # digests of the blobs that this process has hashed
        self.jobs: set[str] = set()  # units that run for this process, kept by jobs.py
        self.takes_jobs = True

    def prepare(self) -> None:
        """Make the directories. The fast path does without."""
        for path in (self.layout.state, self.layout.blobs, self.layout.layers, self.layout.images, self.layout.work, self.layout.locks):
            os.makedirs(path, mode=0o700, exist_ok=True)
            if path != self.layout.locks and stat.S_IMODE(os.stat(path).st_mode) != 0o700:
                os.chmod(path, 0o700)

    @contextmanager
    def lock(self, *names: str) -> Iterator[None]:
        """Hold exclusive locks, taken in sorted order so that no two holders wait for each other."""
        with ExitStack() as held:
            for name in sorted(set(names)):
                held.enter_context(lock(self.layout, f"{name}.lock"))
            yield

    @contextmanager
    def used(self) -> Iterator[None]:
        """Nothing is collected meanwhile. Any number at a time.

        Held from the look for an image until what uses it has said so, and from the first blob of an image until its record is
        written; never while a registry is waited for, which could keep collections away for as long as it likes.
        """
        with self._whole(fcntl.LOCK_SH):
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else uses the store meanwhile. Raises TemporaryError if somebody does so for too long."""
        with self._whole(fcntl.LOCK_EX | fcntl.LOCK_NB):
            yield

    @contextmanager
    def _whole(self, operation: int) -> Iterator[None]:
        os.makedirs(self.layout.locks, mode=0o700, exist_ok=True)
        fd = os.open(f"{self.layout.locks}/store.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            deadline = time.monotonic() + _PATIENCE
            while True:
                try:
                    fcntl.flock(fd, operation)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise TemporaryError(
                            "the image store is in use: an image is being fetched or verified, or a pod is starting"
                        ) from None
                    time.sleep(0.05)
            yield
        finally:
            os.close(fd)

    # Blobs. No lock: the name is the content, and whoever renames last renames the same bytes.

    def blob_path(self, digest: str) -> str:
        if not is_digest(digest):
            raise ImageError(f"bad digest {digest[:100]!r}")
        return f"{self.layout.blobs}/{digest[7:]}"

    def has_blob(self, digest: str) -> bool:
        """True when the blob is there and good; hashes it, once per process. A bad one is deleted."""
        path = self.blob_path(digest)
        try:
            fd = open_regular(path)
        except FileNotFoundError:
            self._good.discard(digest)
            return False
        try:
            if digest not in self._good and _hash_readable(fd) != digest[7:]:
                os.unlink(path)
                return False
        finally:
            os.close(fd)
        self._good.add(digest)
        return True

    def read_blob(self, digest: str, limit: int) -> bytes:
        """A small blob's bytes, hashed now. Raises FileNotFoundError if it is absent or was bad, which deletes it."""
        path = self.blob_path(digest)
        with open(open_regular(path), "rb") as file:
            data = read_readable(file, limit + 1)
        if len(data) > limit:
            raise ImageError(f"{digest}: is larger than {limit} bytes")
        if hashlib.sha256(data).hexdigest() != digest[7:]:
            with suppress(OSError):  # who only looks may not
                os.unlink(path)
            raise FileNotFoundError(errno.ENOENT, "the stored blob was damaged", path)
        return data

    def blob_names(self) -> list[str]:
        """The digests of all blobs, unchecked."""
        return [f"sha256:{name}" for name in sorted(os.listdir(self.layout.blobs)) if is_digest(f"sha256:{name}")]

    def adopt_blob(self, path: str, fd: int, digest: str) -> None:
        """Move a file of our file system, which nobody else can write any more, into the store; `fd` is open on it.

        Raises ImageError if it has another digest.
        """
        actual = hash_file(fd)
        if actual != digest[7:]:
            raise ImageError(f"blob {digest}: the bytes have another digest, sha256:{actual}")
        self._settle(path, fd, self.blob_path(digest))
        self._good.add(digest)

    def settle_blob(self, path: str, digest: str) -> None:
        """As adopt_blob, for what the caller hashed when nobody else could write it any more; the file keeps its name, too."""
        fd = open_regular(path)
        try:
            os.link(path, f"{path}.link")
            self._settle(f"{path}.link", fd, self.blob_path(digest))
        finally:
            os.close(fd)
        self._good.add(digest)

    def copy_blob(self, source: int, digest: str, limit: int, directory: str) -> None:
        """Copy what `source` reads into the store by way of a file in `directory` (of a job). Raises ImageError for other bytes."""
        temporary = f"{directory}/{digest[7:]}"
        target = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            actual, _ = copy_hashed(source, target, limit)
            if actual != digest[7:]:
                raise ImageError(f"blob {digest}: the bytes have another digest, sha256:{actual}")
            self._settle(temporary, target, self.blob_path(digest))
        except ImageError:
            os.unlink(temporary)
            raise
        finally:
            os.close(target)
        self._good.add(digest)

    # Layers

    def layer_path(self, key: str) -> str:
        return f"{self.layout.layers}/{_checked_name(key)}.erofs"

    def layer_files(self, key: str) -> tuple[str, ...]:
        """The paths of all that the store has of a layer."""
        return self.layer_path(key), self._entries_path(key), self._layer_record(key)

    def verify_layer(self, key: str, *, locked: bool = False) -> bool:
        """True when the layer's file is what its record says. A changed one is deleted, to be built again.

        Cheap where the kernel checks the file as it is read (fs-verity), and while inode, size, mtime and ctime are those of the hashed
        file (an edit shows, bit rot does not); else a full hash. `locked`: the caller holds the lock `layer-KEY`.
        """
        record = load_record(self._layer_record(key), LayerRecord)
        try:
            if record is not None and _is_unchanged(self.layer_path(key), record):
                return True
        except FileNotFoundError:
            return False
        if locked:
            return self.hash_layer(key)
        with self.lock(f"layer-{key}"):
            return self.hash_layer(key)

    def hash_layer(self, key: str) -> bool:
        """As verify_layer, always in full. The caller holds the lock `layer-KEY`."""
        path, record = self.layer_path(key), load_record(self._layer_record(key), LayerRecord)
        try:
            fd = open_regular(path)
        except FileNotFoundError:
            return False
        except (ImageError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in UNREADABLE:
                raise
            fd = -1
        try:
            if record is not None and fd >= 0:
                verity, found = seal(path), LayerHash(record.tar_size, record.tar, record.rest)
                if _read_back(lambda: hash_image(fd, record.tar_size)) == found:
                    save_record(self._layer_record(key), _layer_record(fd, found, verity, record.entries))
                    return True
        finally:
            if fd >= 0:
                os.close(fd)
        os.unlink(path)
        return False

    def find_entries(self, key: str) -> str:
        """The path of what was noted of a layer's entries, if that is unchanged: hashed now. Else ""."""
        record, path = load_record(self._layer_record(key), LayerRecord), self._entries_path(key)
        if record is None or not record.entries:
            return ""
        try:
            fd = open_regular(path)
        except (FileNotFoundError, ImageError):
            return ""
        try:
            return path if _hash_readable(fd) == record.entries else ""
        finally:
            os.close(fd)

    def adopt_layer(self, path: str, fd: int, key: str, found: LayerHash, entries: tuple[str, int] | None = None) -> None:
        """Move a converted layer, which nobody else can write any more, into the store. The caller holds the lock `layer-KEY`.

        `found`: what it was hashed as. `entries`: path and descriptor of what was noted of its entries, for the layers above it.
        """
        final, noted = self.layer_path(key), ""
        if entries:
            noted = hash_file(entries[1])
            self._settle(*entries, self._entries_path(key))
        self._settle(path, fd, final)
        verity = seal(final)
        save_record(self._layer_record(key), _layer_record(fd, found, verity, noted))  # at last: rename and fs-verity change the ctime

    # Image records: one per reference, and one per pin so that a pinned image is found under any name.

    def find_image(self, reference: str) -> ImageRecord | None:
        return load_record(f"{self.layout.images}/{reference_name(reference)}.json", ImageRecord)

    def find_pin(self, kind: str, digest: str) -> ImageRecord | None:
        """The record of a pin, whatever the reference was that brought the image. `kind` is a Reference's."""
        record = load_record(f"{self.layout.images}/{pin_name(kind, digest)}.json", ImageRecord)
        return record if record is not None and record.pin == digest else None

    def write_image(self, record: ImageRecord, *, with_pin: bool = True) -> None:
        """Save under its reference and its pin."""
        for name in record_names(record)[: 1 + with_pin]:
            with self.lock(f"record-{name}"):
                save_record(f"{self.layout.images}/{name}.json", record)

    def list_images(self) -> list[ImageRecord]:
        """The records of all references, sorted."""
        names = [n for n in os.listdir(self.layout.images) if n.endswith(".json") and not n.startswith(".") and not is_pin_name(n)]
        records = (load_record(f"{self.layout.images}/{n}", ImageRecord) for n in names)
        return sorted(r for r in records if r is not None)

    def list_pins(self) -> list[ImageRecord]:
        """The records of all pins, sorted."""
        names = [n for n in os.listdir(self.layout.images) if n.endswith(".json") and is_pin_name(n)]
        records = (load_record(f"{self.layout.images}/{n}", ImageRecord) for n in names)
        return sorted(r for r in records if r is not None)

    def touch_image(self, record: ImageRecord) -> None:
        """Note that it is used now: what nobody uses is collected by the age of its last use."""
        for name in record_names(record):
            with suppress(OSError):
                os.utime(f"{self.layout.images}/{name}.json")

    def _entries_path(self, key: str) -> str:
        return f"{self.layout.layers}/{_checked_name(key)}.entries"

    def _layer_record(self, key: str) -> str:
        return f"{self.layout.layers}/{_checked_name(key)}.json"

    def _settle(self, temporary: str, fd: int, path: str) -> None:
        os.fchown(fd, os.geteuid(), os.getegid())
        os.fchmod(fd, 0o644)
        os.fsync(fd)
        os.rename(temporary, path)
        sync_directory(os.path.dirname(path))


def _is_unchanged(path: str, record: LayerRecord) -> bool:
    """Without a look at the content. Raises FileNotFoundError."""
    if not record.verity:
        status = os.stat(path, follow_symlinks=False)
        found = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        return stat.S_ISREG(status.st_mode) and found == (record.inode, record.size, record.mtime_ns, record.ctime_ns)
    try:
        fd = open_regular(path)
        try:
            return measure_verity(fd) == record.verity
        finally:
            os.close(fd)
    except FileNotFoundError:
        raise
    except (ImageError, OSError):
        return False  # hash_layer judges


def seal(path: str) -> str:
    """The digest by which the kernel checks the file from now on, or ""."""
    try:
        return enable_verity(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM):
            raise
        return ""


def _hash_readable(fd: int) -> str:
    """As hash_file, but "" for what the medium does not give back any more: it is damaged as a changed one is."""
    return _read_back(lambda: hash_file(fd)) or ""


def _read_back(read: Callable[[], _T]) -> _T | None:
    """None for what the medium does not give back any more."""
    try:
        return read()
    except OSError as error:
        if error.errno not in UNREADABLE:
            raise
        return None


def _checked_name(key: str) -> str:
    if not key or not key.replace("-", "").isalnum():
        raise ImageError(f"bad layer key {key[:100]!r}")
    return key
