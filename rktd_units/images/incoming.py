# SPDX-License-Identifier: Apache-2.0
"""What members of the group rktd fetched: a directory for each image, an OCI layout and the reference that it is for.

All of it is a stranger's, and may change while it is read. Root takes from it bytes that have a digest which root asked for by itself,
and copies these; what a name means is never believed. So what is here saves root the download, and nothing else.
"""

import json
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice

from rktd_units import mounts
from rktd_units.errors import ImageError, PrivilegeError, UsageError
from rktd_units.images import manifest
from rktd_units.images.jobs import work_directory
from rktd_units.images.reference import REGISTRY, Reference, is_digest
from rktd_units.images.store import Store
from rktd_units.paths import Layout
from rktd_units.runfiles import remove_tree

BYTES_MAX = 16 << 30  # of all together
AGE_MAX = 86400.0  # seconds
_DIRECTORIES_MAX = 1000
_FILES_MAX = 10_000  # of one directory
_REFERENCE_MAX = 4096  # bytes
_BLOBS = "blobs/sha256"
# Symbolic links and mount points (of a user's FUSE, which would not answer) are not followed.
_STRICT = mounts.RESOLVE_IN_ROOT | mounts.RESOLVE_NO_SYMLINKS | mounts.RESOLVE_NO_MAGICLINKS | mounts.RESOLVE_NO_XDEV


# The member's side


@contextmanager
def new_delivery(layout: Layout, reference: Reference) -> Iterator[str]:
    """A directory for the image's blobs, as files HEX; complete at the end of the context, or gone.

    Raises PrivilegeError for who is no member of the group, UsageError for a reference that is no registry's.
    """
    if reference.kind != REGISTRY:
        raise UsageError(f"{reference}: only root may fetch from files", hint="members of the group rktd may fetch from registries")
    try:
        directory = tempfile.mkdtemp(prefix=".", dir=layout.incoming)
    except OSError as error:
        raise PrivilegeError(f"{layout.incoming}: {error.strerror}", hint="only root and members of the group rktd may fetch") from error
    try:
        os.makedirs(f"{directory}/{_BLOBS}", mode=0o700)
        yield f"{directory}/{_BLOBS}"
        for name in os.listdir(f"{directory}/{_BLOBS}"):
            if not is_digest(f"sha256:{name}"):
                os.unlink(f"{directory}/{_BLOBS}/{name}")
        with open(f"{directory}/reference", "w", encoding="utf-8") as file:
            file.write(f"{reference}\n")
        os.rename(directory, f"{layout.incoming}/{os.path.basename(directory)[1:]}")
    except BaseException:
        remove_tree(directory)
        raise


def complete_layout(blobs: str, reference: Reference, digest: str) -> None:
    """Make an OCI layout of a delivery whose image has that digest."""
    with open(f"{blobs}/{digest[7:]}", "rb") as file:
        data = file.read()
    kind = manifest.OCI_INDEX if isinstance(manifest.parse_document(data, digest), manifest.Index) else manifest.OCI_MANIFEST
    descriptor = {"mediaType": json.loads(data).get("mediaType") or kind, "digest": digest, "size": len(data)}
    index = {"schemaVersion": 2, "manifests": [{**descriptor, "annotations": {manifest.REF_NAME: str(reference)}}]}
    top = blobs.removesuffix(f"/{_BLOBS}")
    for name, value in (("oci-layout", {"imageLayoutVersion": "1.0.0"}), ("index.json", index)):
        with open(f"{top}/{name}", "w", encoding="utf-8") as file:
            json.dump(value, file)


# Root's side


class Incoming:
    """The blobs that are there now; one that is not what its name says is not looked at again."""

    def __init__(self, layout: Layout) -> None:
        self._path = layout.incoming
        self._found: dict[str, list[str]] | None = None  # digest -> deliveries

    def digests(self) -> set[str]:
        """What others say they have."""
        if self._found is None:
            self._found = {}
            for delivery in list_deliveries(self._path):
                for name in _list_names(self._path, f"{delivery}/{_BLOBS}"):
                    if is_digest(f"sha256:{name}"):
                        self._found.setdefault(f"sha256:{name}", []).append(delivery)
        return set(self._found)

    def copy(self, store: Store, digest: str, limit: int) -> bool:
        """Bring a blob of at most `limit` bytes into the store; False if nobody has it. Raises OSError for what is wrong with the store."""
        if digest not in self.digests():
            return False
        assert self._found is not None
        for delivery in self._found.pop(digest):
            fd = _open_strict(self._path, f"{delivery}/{_BLOBS}/{digest[7:]}", os.O_RDONLY)
            if fd is None:
                continue
            try:
                if stat.S_ISREG(os.fstat(fd).st_mode):
                    with work_directory(store) as work:
                        store.copy_blob(fd, digest, limit, work)
                    return True
            except ImageError:
                continue
            finally:
                os.close(fd)
        return False


def list_deliveries(path: str) -> list[str]:
    """The names of those that are complete."""
    try:
        with os.scandir(path) as entries:
            names = [entry.name for entry in islice(entries, _DIRECTORIES_MAX)]
    except FileNotFoundError:
        return []
    return sorted(name for name in names if not name.startswith(".") and name.isprintable())


def read_reference(layout: Layout, delivery: str) -> str:
    """What the delivery is said to be, or ""."""
    fd = _open_strict(layout.incoming, f"{delivery}/reference", os.O_RDONLY)
    if fd is None:
        return ""
    with open(fd, "rb") as file:
        data = file.read(_REFERENCE_MAX + 1) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    return data.decode("utf-8", "replace").strip() if len(data) <= _REFERENCE_MAX else ""


def remove_delivery(layout: Layout, delivery: str) -> None:
    """Whatever it is."""
    path = f"{layout.incoming}/{delivery}"
    try:
        remove_tree(path)
    except NotADirectoryError:
        with suppress(FileNotFoundError):
            os.unlink(path)


def bound_incoming(layout: Layout) -> list[str]:
    """Remove what is too old, too large or of no known form, oldest first, until the rest is within bounds; gives the names."""
    found, names = [], []
    with suppress(FileNotFoundError), os.scandir(layout.incoming) as entries:
        names = [(entry.name, entry.stat(follow_symlinks=False).st_mtime) for entry in entries]
    for name, mtime in sorted(names, key=lambda n: n[1], reverse=True):
        size = _measure(layout.incoming, name)
        found.append((name, mtime, size))
    left, removed = BYTES_MAX, []
    for index, (name, mtime, size) in enumerate(found):
        if size is not None:
            left -= size
        if size is None or left < 0 or index >= _DIRECTORIES_MAX or mtime < time.time() - AGE_MAX:
            remove_delivery(layout, name)
            removed.append(name)
    return removed


def _measure(path: str, delivery: str) -> int | None:
    """Bytes on disk; None for what is no delivery."""
    total = 0
    for inner, directories in (("", {"blobs"}), ("/blobs", {"sha256"}), ("/blobs/sha256", set())):
        fd = _open_strict(path, f"{delivery}{inner}", os.O_RDONLY | os.O_DIRECTORY)
        if fd is None:
            return None if not inner else total  # one that has only just been made
        try:
            with os.scandir(fd) as entries:
                for count, entry in enumerate(entries):
                    status = entry.stat(follow_symlinks=False)
                    if count >= _FILES_MAX or not (stat.S_ISREG(status.st_mode) or entry.name in directories):
                        return None
                    total += status.st_blocks * 512
        except FileNotFoundError:
            return total
        finally:
            os.close(fd)
    return total


def _list_names(path: str, inner: str) -> list[str]:
    fd = _open_strict(path, inner, os.O_RDONLY | os.O_DIRECTORY)
    if fd is None:
        return []
    try:
        with os.scandir(fd) as entries:
            return [entry.name for entry in islice(entries, _FILES_MAX)]
    finally:
        os.close(fd)


def _open_strict(path: str, inner: str, flags: int) -> int | None:
    """None for whatever cannot be opened, or is reached by a link or through a mount point; never waits for anybody."""
    try:
        top = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return mounts.openat2(top, inner, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY, _STRICT)
    except OSError:
        return None
    finally:
        os.close(top)
