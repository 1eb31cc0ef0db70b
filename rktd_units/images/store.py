# SPDX-License-Identifier: Apache-2.0
"""The image store in /var/lib/rktd: blobs, layers with their records, and what each reference was resolved to.

Everything appears by rename under its final name, complete and synced; a name starting with a dot, and all of work/, is garbage after a
crash. All directories are 0700 and root's. In every pod start: imports next to nothing.
"""

import errno
import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from rktd_units.errors import ImageError, StateError, TemporaryError
from rktd_units.images.reference import DOCKER_ARCHIVE, is_digest
from rktd_units.paths import Layout

VERSION = 1  # of both kinds of record; a record of another version counts as absent
CONVERTER_VERSION = 1  # that of layers.py, which costs too much to import for it; a test compares them
_MANIFEST_PIN, _ARCHIVE_PIN = "pin-", "archive-"
_CHUNK = 1 << 20
_PASSING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.ENFILE, errno.EMFILE, errno.ENOMEM, errno.EAGAIN, errno.EIO})
_Record = TypeVar("_Record", "LayerRecord", "ImageRecord")


class LayerRecord(NamedTuple):
    """What a layer's EROFS file was when it was hashed in full."""

    version: int
    sha256: str  # hexadecimal
    size: int
    inode: int
    mtime_ns: int
    ctime_ns: int


class ImageRecord(NamedTuple):
    """What a reference was resolved to."""

    version: int
    reference: str
    pin: str  # digest by which it can be pinned: of the index, the manifest, or a docker-archive's file
    manifest: str  # digest of this host's manifest
    config: str  # digest
    layer_keys: tuple[str, ...]  # lowest first
    converter: int  # the version that the layer keys are of
    verified_by: str
    time: int  # seconds since the epoch


@contextmanager
def told_errors() -> Iterator[None]:
    """Turn what the file system refuses into our errors: TemporaryError where it may pass (a full disk), else StateError."""
    try:
        yield
    except OSError as error:
        kind = TemporaryError if error.errno in _PASSING else StateError
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


def hash_file(fd: int) -> str:
    """The sha256 of the file from its start, in hexadecimal."""
    digest, offset, buffer = hashlib.sha256(), 0, bytearray(_CHUNK)
    view = memoryview(buffer)
    while count := os.preadv(fd, [buffer], offset):
        digest.update(view[:count])
        offset += count
    return digest.hexdigest()


def copy_hashed(source: int, target: int, limit: int) -> tuple[str, int]:
    """Copy to the end of `source`, `limit` bytes at most (else ImageError): sha256 in hexadecimal, and the size, of what was written."""
    digest, size, buffer = hashlib.sha256(), 0, bytearray(_CHUNK)
    view = memoryview(buffer)
    while count := os.readv(source, [buffer]):
        size += count
        if size > limit:
            raise ImageError(f"is larger than {limit} bytes")
        digest.update(view[:count])
        written = 0
        while written < count:
            written += os.write(target, view[written:count])
    return digest.hexdigest(), size


class Store:
    """The store of one Layout. Safe for parallel use by processes and threads."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._good: set[str] = set()  # digests of the blobs that this process has hashed

    def prepare(self) -> None:
        """Make the directories. The fast path does without."""
        for path in (self.layout.state, self.layout.blobs, self.layout.layers, self.layout.images, self.layout.work, self.layout.locks):
            os.makedirs(path, mode=0o700, exist_ok=True)
            if path != self.layout.locks and stat.S_IMODE(os.stat(path).st_mode) != 0o700:
                os.chmod(path, 0o700)

    @contextmanager
    def lock(self, *names: str) -> Iterator[None]:
        """Hold exclusive locks, taken in sorted order so that no two holders wait for each other."""
        held: list[int] = []
        os.makedirs(self.layout.locks, mode=0o700, exist_ok=True)  # in /run: gone after a reboot
        try:
            for name in sorted(set(names)):
                flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
                held.append(os.open(f"{self.layout.locks}/{name}.lock", flags, 0o600))
                fcntl.flock(held[-1], fcntl.LOCK_EX)
            yield
        finally:
            for fd in reversed(held):
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
            if digest not in self._good and hash_file(fd) != digest[7:]:
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
            data = file.read(limit + 1)
        if len(data) > limit:
            raise ImageError(f"{digest}: is larger than {limit} bytes")
        if hashlib.sha256(data).hexdigest() != digest[7:]:
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

    def verify_layer(self, key: str, *, locked: bool = False) -> bool:
        """True when the layer's file is what its record says. A changed one is deleted, to be built again.

        Cheap while inode, size, mtime and ctime are those of the hashed file (an edit shows, bit rot does not); else a full hash.
        `locked`: the caller holds the lock `layer-KEY`.
        """
        path, record = self.layer_path(key), self._load(self._layer_record(key), LayerRecord)
        try:
            status = os.stat(path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        if record is not None and _is_same_file(record, status):
            return True
        if locked:
            return self.hash_layer(key)
        with self.lock(f"layer-{key}"):
            return self.hash_layer(key)

    def hash_layer(self, key: str) -> bool:
        """As verify_layer, always in full. The caller holds the lock `layer-KEY`."""
        path, record = self.layer_path(key), self._load(self._layer_record(key), LayerRecord)
        try:
            fd = open_regular(path)
        except FileNotFoundError:
            return False
        except ImageError:
            fd = -1
        try:
            if record is not None and fd >= 0 and hash_file(fd) == record.sha256:
                self._save(self._layer_record(key), _layer_record(fd, record.sha256))
                return True
        finally:
            if fd >= 0:
                os.close(fd)
        os.unlink(path)
        return False

    def adopt_layer(self, path: str, fd: int, key: str) -> None:
        """Move a converted layer, which nobody else can write any more, into the store. The caller holds the lock `layer-KEY`."""
        sha256 = hash_file(fd)
        self._settle(path, fd, self.layer_path(key))
        self._save(self._layer_record(key), _layer_record(fd, sha256))  # after the rename, which changes the ctime

    # Image records: one per reference, and one per pin so that a pinned image is found under any name.

    def find_image(self, reference: str) -> ImageRecord | None:
        return self._load(f"{self.layout.images}/{reference_name(reference)}.json", ImageRecord)

    def find_pin(self, kind: str, digest: str) -> ImageRecord | None:
        """The record of a pin, whatever the reference was that brought the image. `kind` is a Reference's."""
        record = self._load(f"{self.layout.images}/{_pin_name(kind, digest)}.json", ImageRecord)
        return record if record is not None and record.pin == digest else None

    def write_image(self, record: ImageRecord) -> None:
        """Save under its reference and its pin."""
        for name in (reference_name(record.reference), _pin_name(record.reference.partition(":")[0], record.pin)):
            with self.lock(f"record-{name}"):
                self._save(f"{self.layout.images}/{name}.json", record)

    def list_images(self) -> list[ImageRecord]:
        """The records of all references, sorted."""
        names = [n for n in os.listdir(self.layout.images) if n.endswith(".json") and not n.startswith((".", _MANIFEST_PIN, _ARCHIVE_PIN))]
        records = (self._load(f"{self.layout.images}/{n}", ImageRecord) for n in names)
        return sorted(r for r in records if r is not None)

    def _layer_record(self, key: str) -> str:
        return f"{self.layout.layers}/{_checked_name(key)}.json"

    def _settle(self, temporary: str, fd: int, path: str) -> None:
        os.fchown(fd, os.geteuid(), os.getegid())
        os.fchmod(fd, 0o644)
        os.fsync(fd)
        os.rename(temporary, path)
        _sync_directory(os.path.dirname(path))

    def _save(self, path: str, record: LayerRecord | ImageRecord) -> None:
        """The caller holds a lock, so that the temporary name is its own."""
        directory, name = os.path.split(path)
        temporary = f"{directory}/.{name}"
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "w") as file:
            json.dump(record._asdict(), file)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
        _sync_directory(directory)

    def _load(self, path: str, kind: type[_Record]) -> _Record | None:
        """None for an absent, damaged or foreign record: the thing is then made again."""
        try:
            with open(path, encoding="utf-8") as file:
                value = json.load(file)
        except (FileNotFoundError, ValueError):
            return None
        return _checked_record(kind, value)


def _checked_record(kind: type[_Record], value: Any) -> _Record | None:
    if not isinstance(value, dict) or value.get("version") != VERSION or set(value) != set(kind._fields):
        return None
    for field, annotation in kind.__annotations__.items():
        if annotation is int and type(value[field]) is not int:
            return None
        if annotation is str and type(value[field]) is not str:
            return None
    if kind is ImageRecord:
        keys = value["layer_keys"]
        if not isinstance(keys, list) or not keys or not all(isinstance(k, str) for k in keys):
            return None
        value["layer_keys"] = tuple(keys)
    return kind(**value)


def _is_same_file(record: LayerRecord, status: os.stat_result) -> bool:
    return (record.inode, record.size, record.mtime_ns, record.ctime_ns) == (
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    ) and stat.S_ISREG(status.st_mode)


def _layer_record(fd: int, sha256: str) -> LayerRecord:
    status = os.fstat(fd)
    return LayerRecord(VERSION, sha256, status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)


def _pin_name(kind: str, digest: str) -> str:
    """The digest of an archive's file is another thing than that of a manifest."""
    return f"{_ARCHIVE_PIN if kind == DOCKER_ARCHIVE else _MANIFEST_PIN}{digest[7:]}"


def reference_name(reference: str) -> str:
    """A file name for a reference."""
    return hashlib.sha256(reference.encode()).hexdigest()


def _checked_name(key: str) -> str:
    if not key or not key.replace("-", "").isalnum():
        raise ImageError(f"bad layer key {key[:100]!r}")
    return key


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
