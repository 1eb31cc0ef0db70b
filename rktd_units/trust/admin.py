# SPDX-License-Identifier: Apache-2.0
"""What podctl does with trusted keys: look into files, add, list, remove. Root's own files only; nothing here decides about an image."""

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

from rktd_units.errors import NotFoundError, TrustError, UsageError, clean_text
from rktd_units.images.records import sync_directory
from rktd_units.paths import Layout
from rktd_units.settings import LOCAL_KINDS, split_prefix
from rktd_units.settingsfile import check_prefix
from rktd_units.trust.keys import is_pem, list_prefixes, read_keys, scan_scope, scope_directory

GPG = "gpg"
COSIGN = "cosign"
GOOD, MASKED, UNREADABLE = "good", "masked", "unreadable"  # and those of gpg.Key


class KeyInfo(NamedTuple):
    """One public key in a file."""

    kind: str  # GPG or COSIGN
    fingerprint: str
    users: tuple[str, ...]  # user ids; of cosign's the algorithm
    state: str
    expires: int  # seconds since the epoch; 0 is never
    text: str  # armored or PEM, the key alone

    @property
    def file_name(self) -> str:
        return f"{self.fingerprint}.{'asc' if self.kind == GPG else 'pub'}"


class TrustedKey(NamedTuple):
    """One key of the trusted ones, or a file that holds none: then `key` is None and `fault` says why."""

    prefix: str
    path: str
    vendor: bool
    masked_by: str
    key: KeyInfo | None
    fault: str = ""

    @property
    def state(self) -> str:
        """For people and JSON: good, expired, revoked, invalid, masked or unreadable."""
        return MASKED if self.masked_by else self.key.state if self.key else UNREADABLE


def inspect_keys(data: bytes) -> list[KeyInfo]:
    """The keys of a file. Raises TrustError if there are none, or a private one, which belongs nowhere else than where it was made."""
    if b"PRIVATE KEY" in data:
        raise TrustError("holds a private key", hint="gpg --armor --export FINGERPRINT, or cosign public-key, writes the public one")
    if is_pem(data):
        from rktd_units.trust import pem

        return [
            KeyInfo(COSIGN, fingerprint, (pem.describe_key(key),), GOOD, 0, pem.export_key(key))
            for fingerprint, key in pem.load_keys(data).items()
        ]
    from rktd_units.trust.gpg import temporary_keyring

    with temporary_keyring() as ring:
        ring.add([data])
        found = [
            KeyInfo(GPG, key.fingerprint, key.users, key.state, key.expires[key.fingerprint], ring.export(key.fingerprint))
            for key in ring.keys().values()
        ]
    if not found:
        raise TrustError("holds no key", hint="OpenPGP keys (gpg --export) and PEM public keys (cosign.pub) are understood")
    return found


def canonical_prefix(text: str) -> str:
    """`busybox` is docker.io/library/busybox, as in image references; also the name of an ACI. Raises UsageError."""
    kind, colon, rest = text.partition(":")
    if colon and kind in LOCAL_KINDS:
        raise UsageError(
            f"'{text}' can have no keys", hint=f"write its name, {rest}" if kind == "aci" else "pin those images, with a digest"
        )
    problem = check_prefix(text)
    if problem:
        raise UsageError(f"'{text}' is not a prefix of images: {problem}", hint="HOST[/REPOSITORY], by whole components")
    return "/".join(split_prefix(text))


def add_key(layout: Layout, prefix: str, key: KeyInfo) -> str:
    """Trust a key for a prefix, "" for every name; gives the file. One of the same name, a mask too, is replaced."""
    return _write(f"{scope_directory(layout, prefix)}/{key.file_name}", key.text)


def list_keys(layout: Layout) -> Iterator[TrustedKey]:
    """All of them, by prefix and file; masked ones too."""
    for prefix in list_prefixes(layout):
        found, masked = scan_scope(layout, prefix)
        for file in found:
            yield from _look(prefix, file.path, file.vendor, "")
        for mask in masked:
            if mask.vendor:
                yield from _look(prefix, mask.vendor, True, mask.path)


def remove_keys(layout: Layout, prefix: str | None, name: str) -> list[str]:
    """Trust a key no more, in one prefix or (None) wherever it stands; gives the files that changed, a mask for a vendor's.

    `name` is a fingerprint, 8 digits of either end of it at least, or the name of a file. Raises NotFoundError, TrustError.
    """
    digits = "".join(name.split()).lower()
    there = [found for found in list_keys(layout) if not found.masked_by and (prefix is None or found.prefix == prefix)]
    matches = [found for found in there if os.path.basename(found.path) == name or (found.key and _means(digits, found.key.fingerprint))]
    where = "" if prefix is None else f" for {prefix or 'every name'}"
    if not matches:
        raise NotFoundError(f"no key {name!r} is trusted{where}", hint="podctl trust list")
    different = sorted({found.key.fingerprint for found in matches if found.key})
    if len(different) > 1 and name not in {os.path.basename(found.path) for found in matches}:
        raise TrustError(f"{name!r} could be any of {', '.join(different)}")
    for found in matches:
        others = {other.key.fingerprint for other in there if other.path == found.path and other.key} - {digits.upper(), digits}
        if found.key and len(others | {found.key.fingerprint}) > 1 and os.path.basename(found.path) != name:
            raise TrustError(f"{clean_text(found.path)}: holds other keys too", hint="name the file, to remove all of them")
    return [_remove(layout, *place) for place in sorted({(found.prefix, found.path) for found in matches})]


def _means(digits: str, fingerprint: str) -> bool:
    whole = fingerprint.lower()
    return len(digits) >= 8 and (whole.startswith(digits) or whole.endswith(digits))


def _remove(layout: Layout, prefix: str, path: str) -> str:
    name = os.path.basename(path)
    own = f"{scope_directory(layout, prefix)}/{name}"
    if os.path.lexists(f"{scope_directory(layout, prefix, vendor=True)}/{name}"):
        return _write(own, "")
    os.unlink(own)
    directory = os.path.dirname(own)
    with contextlib.suppress(OSError):  # not empty
        while prefix and directory != scope_directory(layout, "x")[:-2]:
            os.rmdir(directory)
            directory = os.path.dirname(directory)
    return own


def _look(prefix: str, path: str, vendor: bool, mask: str) -> Iterator[TrustedKey]:
    try:
        keys = inspect_keys(read_keys(path))
    except TrustError as error:
        yield TrustedKey(prefix, path, vendor, mask, None, str(error))
        return
    for key in keys:
        yield TrustedKey(prefix, path, vendor, mask, key)


def _write(path: str, text: str) -> str:
    """Whole or not at all, readable for all."""
    directory, name = os.path.split(path)
    os.makedirs(directory, mode=0o755, exist_ok=True)
    temporary = f"{directory}/.{name}.{os.getpid()}"
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644), "w") as file:
        os.fchmod(file.fileno(), 0o644)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, path)
    sync_directory(directory)
    return path
