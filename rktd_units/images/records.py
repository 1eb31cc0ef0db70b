# SPDX-License-Identifier: Apache-2.0
"""The store's records: JSON files with a checksum, each written whole and synced. In every pod start: imports next to nothing."""

import errno
import hashlib
import json
import os
from collections.abc import Sequence
from typing import IO, Any, NamedTuple, TypeVar

from rktd_units.images.reference import ACI, DOCKER_ARCHIVE

CONVERTER_VERSION = 3  # goes up with every change of what comes out of layers.py
VERSION = 3  # of all kinds of record; a record of another version counts as absent
TAR_START = 4096  # bytes before the tar in a layer's EROFS file
UNREADABLE = frozenset({errno.EIO, errno.EBADMSG, errno.EUCLEAN})  # of the medium, a checksum of the file system, or fs-verity
_RECORD_MAX = 1 << 20  # bytes
_MANIFEST_PIN, _ARCHIVE_PIN, _ACI_PIN = "pin-", "archive-", "aci-"
_Record = TypeVar("_Record", "LayerRecord", "ImageRecord", "Voucher")


class LayerRecord(NamedTuple):
    """What a layer's EROFS file was when it was hashed in full."""

    version: int
    tar_size: int
    tar: str  # sha256 of so many bytes from TAR_START on, hexadecimal: the layer's diff id
    rest: str  # sha256 of all other bytes, hexadecimal
    size: int
    inode: int
    mtime_ns: int
    ctime_ns: int
    verity: str  # as verity.py gives it; "" where the kernel does not check the file, and inode, size and times must do
    entries: str  # sha256 of the file of its entries, hexadecimal; "" if there is none


class ImageRecord(NamedTuple):
    """What a reference was resolved to."""

    version: int
    reference: str
    pin: str  # digest by which it can be pinned: of the index, the manifest, or a docker-archive's file; or an image ID (ACI)
    manifest: str  # digest of this host's manifest
    config: str  # digest
    layer_keys: tuple[str, ...]  # lowest first
    insecure: bool  # the layers are those of an image that nobody vouches for
    converter: int  # the version that the layer keys are of
    verified_by: str
    time: int  # seconds since the epoch


class Voucher(NamedTuple):
    """One signature that was verified (trust/vouchers.py)."""

    version: int
    reference: str  # that was asked for
    form: str  # SIMPLE, COSIGN or DETACHED
    fingerprint: str  # of the primary key, or sha256 of the public key (SubjectPublicKeyInfo, DER); hexadecimal
    prefix: str  # that the key is trusted for; "" is every name
    digest: str  # "sha256:HEX" of what was signed, an index or a manifest; of DETACHED the image ID of an ACI
    identity: str  # what the signer calls it; of DETACHED the name that it was verified for
    keys: str  # stamp of the key files
    expires: int  # when the first of key and signature does, seconds since the epoch; 0 is never
    signature: str  # base64
    payload: str  # what it is of, besides what it says itself: COSIGN: the claim, base64; DETACHED: the digest of the file, which is a blob


def save_record(path: str, record: LayerRecord | ImageRecord | Voucher) -> None:
    """The caller holds a lock, so that the temporary name is its own."""
    directory, name = os.path.split(path)
    temporary = f"{directory}/.{name}"
    value = record._asdict()
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "w") as file:
        json.dump({**value, "check": _check(value)}, file)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, path)
    sync_directory(directory)


def load_record(path: str, kind: type[_Record]) -> _Record | None:
    """None for an absent, damaged or foreign record: the thing is then made again."""
    try:
        with open(path, "rb") as file:
            value = json.loads(read_readable(file, _RECORD_MAX))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return _checked_record(kind, value)


def record_names(record: ImageRecord) -> tuple[str, str]:
    """The file names, without suffix, of an image's two records: of its reference and of its pin."""
    return reference_name(record.reference), pin_name(record.reference.partition(":")[0], record.pin)


def pin_name(kind: str, digest: str) -> str:
    """The digest of an archive's file, and an ACI's own hash, are other things than the digest of a manifest."""
    return {DOCKER_ARCHIVE: _ARCHIVE_PIN, ACI: _ACI_PIN}.get(kind, _MANIFEST_PIN) + digest[7:]


def is_pin_name(name: str) -> bool:
    return name.startswith((_MANIFEST_PIN, _ARCHIVE_PIN, _ACI_PIN))


def reference_name(reference: str) -> str:
    """A file name for a reference."""
    return hashlib.sha256(reference.encode()).hexdigest()


def read_readable(file: IO[bytes], size: int) -> bytes:
    """b"" for what the medium does not give back any more: it is damaged as a changed file is."""
    try:
        return file.read(size)
    except OSError as error:
        if error.errno not in UNREADABLE:
            raise
        return b""


def sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _check(value: dict[str, Any]) -> str:
    """The checksum of a record's fields: finds what bit rot or an editor did to it, not somebody who counts it anew."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _checked_record(kind: type[_Record], value: Any) -> _Record | None:
    if not isinstance(value, dict) or value.get("version") != VERSION or value.pop("check", "") != _check(value):
        return None
    if set(value) != set(kind._fields):
        return None
    for field, annotation in kind.__annotations__.items():
        if annotation is int and type(value[field]) is not int:
            return None
        if annotation in (str, bool) and type(value[field]) is not annotation:
            return None
    if kind is ImageRecord:
        keys = value["layer_keys"]
        if not isinstance(keys, list) or not keys or not all(isinstance(k, str) for k in keys):
            return None
        value["layer_keys"] = tuple(keys)
    return kind(**value)


def chain_ids(diff_ids: Sequence[str]) -> tuple[str, ...]:
    """The chain id of each layer: it names the layer and all below it. OCI image-spec, config.md, Layer ChainID."""
    chain: list[str] = []
    for diff_id in diff_ids:
        both = f"{chain[-1]} {diff_id}" if chain else ""
        chain.append(f"sha256:{hashlib.sha256(both.encode()).hexdigest()}" if both else diff_id)
    return tuple(chain)


def layer_key(chain_id: str, *, insecure: bool = False) -> str:
    """The cache key, in hex, of the EROFS image for a chain id: changes with the converter.

    `insecure`: nobody vouches for the image. What it makes of a sandbox must not become what a verified one of the same layers runs from.
    """
    return hashlib.sha256(f"{CONVERTER_VERSION}\0{'insecure ' if insecure else ''}{chain_id}".encode()).hexdigest()
