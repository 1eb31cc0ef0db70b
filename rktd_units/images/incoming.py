# SPDX-License-Identifier: Apache-2.0
"""What members of the group rktd fetched: a directory for each image, an OCI layout and the reference that it is for.

All of it is a stranger's, and may change while it is read. Root takes from it bytes that have a digest which root asked for by itself,
and copies these; what a name means is never believed. So what is here saves root the download, and nothing else.
"""

import json
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice

from rktd_units import mounts
from rktd_units.errors import ImageError, PrivilegeError
from rktd_units.images import manifest
from rktd_units.images.jobs import work_directory
from rktd_units.images.reference import REGISTRY, Reference, is_digest
from rktd_units.images.store import Store, hash_file
from rktd_units.paths import Layout
from rktd_units.runfiles import remove_tree

BYTES_MAX = 16 << 30  # of all together; any name counts 4 KiB at least, and holes count
OWNER_BYTES_MAX = 8 << 30
AGE_MAX = 86400.0  # seconds
_DIRECTORIES_MAX = 1000
_OWNER_DIRECTORIES_MAX = 100
_ENTRIES_MAX = 20_000  # of the spool that are looked at in one run
_FILES_MAX = 1000  # of one delivery: an image has 500 layers at most
_NAMES_MAX = 20_000  # of blobs
_OWNER_NAMES_MAX = 5000
_BAD_MAX = 2  # files that are read in vain for one digest
_NAME_COST = 4096  # bytes
_ROUNDS = 1000  # of a removal
_REFERENCE_MAX = 4096  # bytes
_BLOBS = "blobs/sha256"
# Symbolic links and mount points (of a user's FUSE, which would not answer) are not followed.
_STRICT = mounts.RESOLVE_IN_ROOT | mounts.RESOLVE_NO_SYMLINKS | mounts.RESOLVE_NO_MAGICLINKS | mounts.RESOLVE_NO_XDEV


# The member's side


@contextmanager
def new_delivery(layout: Layout, reference: Reference) -> Iterator[str]:
    """A directory for the image's blobs, as files HEX; complete at the end of the context, or gone.

    Raises PrivilegeError for who is no member of the group, or wants what is no registry's.
    """
    if reference.kind != REGISTRY:
        raise PrivilegeError(f"{reference}: only root may fetch from files", hint="members of the group rktd may fetch from registries")
    try:
        import tempfile  # 10 ms that a start need not pay

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
    """The blobs that are there now; one that is not what its name says is not looked at again, nor is anything else of its owner."""

    def __init__(self, layout: Layout) -> None:
        self._path = layout.incoming
        self._found: dict[str, list[str]] | None = None  # digest -> deliveries
        self._liars: set[int] = set()  # uids

    def digests(self) -> set[str]:
        """What others say they have, 20,000 at most."""
        if self._found is None:
            found: dict[str, list[str]] = {}
            left = _NAMES_MAX
            of_owner: dict[int, int] = {}
            for delivery in list_deliveries(self._path):
                owner, names = _list_names(self._path, f"{delivery}/{_BLOBS}")
                names = names[: max(0, min(left, _OWNER_NAMES_MAX - of_owner.get(owner, 0)))]
                left -= len(names)
                of_owner[owner] = of_owner.get(owner, 0) + len(names)
                for name in names:
                    if is_digest(f"sha256:{name}"):
                        found.setdefault(f"sha256:{name}", []).append(delivery)
            self._found = found
        return set(self._found)

    def copy(self, store: Store, digest: str, limit: int) -> bool:
        """Bring a blob of at most `limit` bytes into the store; False if nobody has it. Raises OSError for what is wrong with the store."""
        if digest not in self.digests():
            return False
        assert self._found is not None
        bad = 0
        for delivery in self._found.pop(digest):
            fd = _open_strict(self._path, f"{delivery}/{_BLOBS}/{digest[7:]}", os.O_RDONLY)
            if fd is None:
                continue
            try:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode) or status.st_size > limit or status.st_uid in self._liars:
                    continue
                if hash_file(fd, limit) == digest[7:]:  # before anything is written
                    with work_directory(store) as work:
                        store.copy_blob(fd, digest, limit, work)
                    return True
            except ImageError:  # it changed
                pass
            finally:
                os.close(fd)
            self._liars.add(status.st_uid)
            bad += 1
            if bad == _BAD_MAX:
                break
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


def remove_delivery(layout: Layout, delivery: str) -> bool:
    """Whatever it is. False for what its owner keeps from being removed: by adding to it all the time, or by a mount point."""
    path = f"{layout.incoming}/{delivery}"
    try:
        try:
            remove_tree(path, _ROUNDS)
        except NotADirectoryError:
            os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError:
        return False
    return True


def bound_incoming(layout: Layout) -> list[str]:
    """Remove what is too old, too large or of no known form, oldest first, until the rest is within bounds; gives the names.

    First what one owner has is bounded, then the whole. The age is that of the last change (ctime): no user can set that back.
    """
    found: list[tuple[float, int, str]] = []
    with suppress(FileNotFoundError), os.scandir(layout.incoming) as entries:
        for entry in islice(entries, _ENTRIES_MAX):
            with suppress(OSError):  # gone, or a mount point of a user's, which cannot be removed
                status = os.stat(entry.path, follow_symlinks=False)
                found.append((status.st_ctime, status.st_uid, entry.name))
    total, removed = _Share(BYTES_MAX, _DIRECTORIES_MAX), []
    shares: dict[int, _Share] = {}
    for changed, owner, name in sorted(found, reverse=True):
        share = shares.setdefault(owner, _Share(OWNER_BYTES_MAX, _OWNER_DIRECTORIES_MAX))
        size = None if changed < time.time() - AGE_MAX else _measure(layout.incoming, name)
        fits = size is not None and share.take(size) and total.take(size)
        if not fits and remove_delivery(layout, name):
            removed.append(name)
    return removed


class _Share:
    """What may still be there, of one owner or of all."""

    def __init__(self, size: int, directories: int) -> None:
        self._bytes, self._directories = size, directories

    def take(self, size: int) -> bool:
        """Whether one more delivery fits; it is then counted."""
        fits = size <= self._bytes and self._directories > 0
        if fits:
            self._bytes -= size
            self._directories -= 1
        return fits


def _measure(path: str, delivery: str) -> int | None:
    """Bytes, holes among them; None for what is no delivery."""
    total, count = 0, 0
    for inner, directories in (("", {"blobs"}), ("/blobs", {"sha256"}), ("/blobs/sha256", set())):
        fd = _open_strict(path, f"{delivery}{inner}", os.O_RDONLY | os.O_DIRECTORY)
        if fd is None:
            return None if not inner else total  # one that has only just been made
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    size = _size(entry, directories)
                    count += 1
                    if size is None or count > _FILES_MAX:
                        return None
                    total += max(size, _NAME_COST)
        finally:
            os.close(fd)
    return total


def _size(entry: "os.DirEntry[str]", directories: set[str]) -> int | None:
    """Bytes; 0 for what is gone already, None for what no delivery has."""
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return 0
    except OSError:
        return None
    if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
        return max(status.st_size, status.st_blocks * 512)
    return 0 if stat.S_ISDIR(status.st_mode) and entry.name in directories else None


def _list_names(path: str, inner: str) -> tuple[int, list[str]]:
    """The uid of a directory's owner, and some of the names in it."""
    fd = _open_strict(path, inner, os.O_RDONLY | os.O_DIRECTORY)
    if fd is None:
        return -1, []
    try:
        with os.scandir(fd) as entries:
            return os.fstat(fd).st_uid, [entry.name for entry in islice(entries, _FILES_MAX)]
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
