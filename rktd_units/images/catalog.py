# SPDX-License-Identifier: Apache-2.0
"""The store's images as people name and list them: by reference or short digest, with size, age, and whether they are kept."""

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from rktd_units.errors import AmbiguousError, ImageError, NotFoundError, UsageError
from rktd_units.images.manifest import DOCUMENT_MAX, Manifest, parse_config, parse_manifest
from rktd_units.images.ready import resolve_reference
from rktd_units.images.records import ImageRecord, record_names, reference_name
from rktd_units.images.reference import is_digest, is_image_id
from rktd_units.images.store import Store
from rktd_units.trust.vouchers import load_voucher

SHORT = 12  # digits of a digest as people see it
SHORT_MIN = 6  # digits that a digest must be given with
_HEX = frozenset("0123456789abcdef")


class Entry(NamedTuple):
    """One reference. `size`: bytes that its blobs and layers take on disk, each counted though others share it; `used`: epoch seconds."""

    record: ImageRecord
    kept: bool
    size: int
    used: float


class Name(NamedTuple):
    """What an image may be asked for by: its reference, the digest of its manifest, and its pin."""

    reference: str
    manifest: str
    pin: str


def list_entries(store: Store) -> list[Entry]:
    """All references, sorted."""
    try:
        return [_entry(store, record) for record in store.list_images()]
    except FileNotFoundError:
        return []


def find_entries(store: Store, text: str) -> list[Entry]:
    """What a reference, or the first digits of a digest, stands for: one image, under each of its references if it is given by digest.

    Raises as `select_names` does.
    """
    with suppress(ImageError):
        record = _find_record(store, text)
        if record:
            return [_entry(store, record)]
    entries = {Name(e.record.reference, e.record.manifest, e.record.pin): e for e in list_entries(store)}
    return [entries[name] for name in select_names(store, tuple(entries), text)]


def select_names(store: Store, names: Sequence[Name], text: str) -> list[Name]:
    """Those of the names that a reference, or the first digits of a digest, stands for. Of the store only its place matters.

    Digits are those of the manifest or of the pin, which is an ACI's image ID. Raises UsageError (too few), NotFoundError, AmbiguousError.
    """
    with suppress(ImageError):
        reference = resolve_reference(text, store)
        same = [n for n in names if n.reference == str(reference)] or [n for n in names if reference.digest and n.pin == reference.digest]
        if same:
            return same[:1]
    digits = text.removeprefix("sha256:").removeprefix("sha512-")
    if not digits or len(digits) > 128 or not set(digits) <= _HEX:
        from rktd_units.fields import suggest

        raise NotFoundError(
            f"there is no image {text[:300]!r}", hint=suggest(text, [n.reference for n in names]) or "podctl images lists them"
        )
    if len(digits) < SHORT_MIN:
        raise UsageError(f"'{digits}' is too short for a digest: {SHORT_MIN} digits at least")
    found = [n for n in names if digits in (n.manifest[7 : 7 + len(digits)], n.pin[7 : 7 + len(digits)])]
    if not found:
        raise NotFoundError(f"no image has a digest that begins with {digits}", hint="podctl images lists them")
    if len({n.manifest for n in found}) > 1:
        lines = [f"{n.manifest[7:]} {n.reference}" for n in found]
        raise AmbiguousError(f"the digest {digits} is ambiguous:\n  " + "\n  ".join(lines), hint="give more digits")
    return found


def keep_image(store: Store, reference: str) -> None:
    """Spare it from being collected; it need not be there yet."""
    os.makedirs(store.layout.kept, mode=0o700, exist_ok=True)
    with open(f"{store.layout.kept}/{reference_name(reference)}", "w", encoding="utf-8") as file:
        file.write(reference)


def let_go(store: Store, reference: str) -> bool:
    """Undo keep_image; False if it was not kept."""
    try:
        os.unlink(f"{store.layout.kept}/{reference_name(reference)}")
    except FileNotFoundError:
        return False
    return True


def is_kept(store: Store, reference: str) -> bool:
    return os.path.exists(f"{store.layout.kept}/{reference_name(reference)}")


def is_listed(store: Store, record: ImageRecord) -> bool:
    """Whether it is still there, under its reference or its pin."""
    return any(os.path.exists(f"{store.layout.images}/{name}.json") for name in record_names(record))


def remove_records(store: Store, entry: Entry) -> None:
    """Forget a reference; its pin, too, when no other reference has it. Blobs and layers are collect.py's."""
    name, pin = record_names(entry.record)
    others = [r for r in store.list_images() if record_names(r)[1] == pin and r.reference != entry.record.reference]
    for victim in (name,) if others else (name, pin):
        with suppress(FileNotFoundError):
            os.unlink(f"{store.layout.images}/{victim}.json")
    let_go(store, entry.record.reference)


def load_manifest(store: Store, record: ImageRecord) -> Manifest:
    """Raises FileNotFoundError if the blob is not there or damaged."""
    return parse_manifest(store.read_blob(record.manifest, DOCUMENT_MAX), record.manifest)


def list_blobs(store: Store, record: ImageRecord) -> set[str]:
    """The digests of all that the image was made from, as far as its manifest can be read, and of what signatures of it are of."""
    digests = {digest for digest in (record.pin, record.manifest, record.config) if is_digest(digest)}  # an image ID is no blob's
    with suppress(FileNotFoundError, ImageError):
        digests |= {layer.digest for layer in load_manifest(store, record).layers}
    for reference in (record.reference, *list_dependencies(store, record)) if is_image_id(record.pin) else ():
        voucher = load_voucher(store.layout, reference)
        if voucher and is_digest(voucher.payload):
            digests.add(voucher.payload)
    return digests


def list_dependencies(store: Store, record: ImageRecord) -> tuple[str, ...]:
    """The references of the other ACIs that an ACI's image is made of, as far as its configuration can be read."""
    if not is_image_id(record.pin):
        return ()
    with suppress(FileNotFoundError, ImageError):
        appc = parse_config(store.read_blob(record.config, DOCUMENT_MAX), record.config).appc
        return tuple(reference for reference, _ in appc.dependencies) if appc else ()
    return ()


def _find_record(store: Store, text: str) -> ImageRecord | None:
    reference = resolve_reference(text, store)
    record = store.find_image(str(reference))
    if record is None and reference.digest:
        record = store.find_pin(reference.kind, reference.digest)
    return record


def _entry(store: Store, record: ImageRecord) -> Entry:
    paths = [store.layer_path(key) for key in record.layer_keys]
    paths += [store.blob_path(digest) for digest in list_blobs(store, record)]
    size = 0
    for path in set(paths):
        with suppress(FileNotFoundError):
            size += os.stat(path).st_blocks * 512
    used = float(record.time)
    with suppress(FileNotFoundError):
        used = os.stat(f"{store.layout.images}/{record_names(record)[0]}.json").st_mtime
    return Entry(record, is_kept(store, record.reference), size, used)
