# SPDX-License-Identifier: Apache-2.0
"""The files with trusted keys: which of them count for a name. Opens none of them. In every start of a signed image: imports little.

/etc/rktd/trustedkeys/{root.d,prefix.d/PREFIX}/NAME, and the same below /usr/lib/rktd/trustedkeys for vendors. A file in /etc replaces the
vendor's of the same place and name; an empty one, or a link to /dev/null, masks it.
"""

import hashlib
import os
import stat
from typing import NamedTuple

from rktd_units.errors import TrustError, clean_text
from rktd_units.ownership import HINT, find_fault, parents
from rktd_units.paths import Layout

ROOT = "root.d"
PREFIX = "prefix.d"
KEY_FILE_MAX = 1 << 20  # bytes


class KeyFile(NamedTuple):
    """One file, as it was when it was looked at."""

    prefix: str  # "ex.org/etcd"; "" is every name
    path: str
    stamp: tuple[int, ...]  # differs when anything about the file does
    vendor: bool = False


class Masked(NamedTuple):
    """A name that counts for nothing: `path` is the mask, `vendor` what it masks, "" if there is no such file."""

    prefix: str
    path: str
    vendor: str


def find_keys(layout: Layout, name: str) -> tuple[KeyFile, ...]:
    """The files whose keys may vouch for a name (`ex.org/etcd`, without tag), by whole components: those of every name first.

    Raises TrustError if somebody else than root could have written one of them, or taken a mask away.
    """
    parts = name.split("/")
    if not {"", ".", ".."}.isdisjoint(parts):
        raise TrustError(f"{clean_text(name, 300)!r} is no name that keys can be trusted for")
    prefixes = ["", *("/".join(parts[:count]) for count in range(1, len(parts) + 1))]
    return tuple(key for prefix in prefixes for key in scan_scope(layout, prefix)[0])


def stamp_keys(keys: tuple[KeyFile, ...]) -> str:
    """Equal stamps: the same files, none touched, none added, removed or masked."""
    return hashlib.sha256(repr(keys).encode("utf-8", "surrogateescape")).hexdigest()


def scope_directory(layout: Layout, prefix: str, *, vendor: bool = False) -> str:
    base = layout.vendor_keys if vendor else layout.trusted_keys
    return f"{base}/{PREFIX}/{prefix}" if prefix else f"{base}/{ROOT}"


def scan_scope(layout: Layout, prefix: str) -> tuple[list[KeyFile], list[Masked]]:
    """What one prefix has, sorted by file name. Raises TrustError as find_keys does."""
    vendors = _list_files(scope_directory(layout, prefix, vendor=True))
    own = _list_files(scope_directory(layout, prefix))
    found: list[KeyFile] = []
    masked: list[Masked] = []
    for name, (path, status) in sorted({**vendors, **own}.items()):
        if _is_mask(path, status):
            masked.append(Masked(prefix, path, vendors[name][0] if name in vendors and name in own else ""))
            continue
        if not stat.S_ISREG(status.st_mode):
            raise TrustError(f"{clean_text(path)}: must be a regular file", hint="copy the key there; a link could lead to anybody's file")
        _check(path, status)
        stamp = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)  # not st_dev, which differs from boot to boot
        found.append(KeyFile(prefix, path, stamp, name not in own))
    return found, masked


def list_prefixes(layout: Layout) -> list[str]:
    """All prefixes that have a directory, and "" for every name; sorted."""
    found = {""}
    for vendor in (False, True):
        top = scope_directory(layout, "x", vendor=vendor)[:-2]
        for directory, _, files in os.walk(top):
            if files and directory != top:
                found.add(directory[len(top) + 1 :])
    return sorted(found)


def read_keys(path: str) -> bytes:
    """The content of a key file, KEY_FILE_MAX bytes at most. Raises TrustError or OSError."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        data = file.read(KEY_FILE_MAX + 1)
    if len(data) > KEY_FILE_MAX:
        raise TrustError(f"{clean_text(path)}: is larger than {KEY_FILE_MAX >> 10} KiB: too large for keys")
    return data


def is_pem(data: bytes) -> bool:
    """True for a public key of cosign's kind; everything else is OpenPGP."""
    return b"-----BEGIN PUBLIC KEY-----" in data or b"-----BEGIN RSA PUBLIC KEY-----" in data


def _list_files(directory: str) -> dict[str, tuple[str, os.stat_result]]:
    """By name; hidden files, editors' leavings and directories, which are longer prefixes, are none."""
    try:
        entries = list(os.scandir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    real = os.path.realpath(directory)
    for path in (directory, *parents(directory), *(parents(real) if real != directory else ())):
        _check(path, os.stat(path))
    found = {}
    for entry in entries:
        if not entry.name.startswith(".") and not entry.name.endswith("~"):
            status = entry.stat(follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode):
                found[entry.name] = entry.path, status
    return found


def _is_mask(path: str, status: os.stat_result) -> bool:
    if stat.S_ISLNK(status.st_mode):
        return os.readlink(path) == "/dev/null"
    return stat.S_ISREG(status.st_mode) and status.st_size == 0


def _check(path: str, status: os.stat_result) -> None:
    fault = find_fault(status, os.geteuid())
    if fault:
        raise TrustError(f"{clean_text(path)}: {fault}: no image can be trusted by keys that others may change", hint=HINT)
