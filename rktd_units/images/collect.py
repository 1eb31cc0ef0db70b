# SPDX-License-Identifier: Apache-2.0
"""What of the store nobody needs any more, and its removal. The caller holds Store.alone().

An image stays while a pod runs from it, a pod file names it, it is kept (catalog.py), or its last use is not long ago. A blob or layer
stays with its images, and for as long without any. What a crash left half done goes at once.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from rktd_units.images.catalog import list_blobs, list_dependencies
from rktd_units.images.records import ImageRecord, is_pin_name, load_record, record_names, reference_name
from rktd_units.images.reference import is_digest
from rktd_units.images.store import Store


class Spared(NamedTuple):
    """What others need: canonical references, digests (of manifests, or pins), and layers by key."""

    references: frozenset[str] = frozenset()
    digests: frozenset[str] = frozenset()
    layer_keys: frozenset[str] = frozenset()


class Garbage(NamedTuple):
    """One file. `name` is for people; `size`: bytes on disk."""

    kind: str  # image, record, blob, layer or leftover
    name: str
    size: int
    path: str


def find_garbage(store: Store, spared: Spared, before: float) -> list[Garbage]:
    """All that can go, in the order in which it may: records before what they name. `before`: epoch seconds of the last use."""
    garbage: list[Garbage] = []
    live = _sort_records(store, spared, before, garbage)
    blobs = {digest for record in live for digest in list_blobs(store, record)}
    keys = spared.layer_keys | {key for record in live for key in record.layer_keys}
    vouched = {reference for record in live for reference in (record.reference, *list_dependencies(store, record))}
    vouchers = {f"{reference_name(reference)}.json" for reference in vouched}
    garbage += [_garbage("record", name, path, status) for name, path, status in _files(store.layout.vouchers) if name not in vouchers]
    for name, path, status in _files(store.layout.layers):
        key, _, suffix = name.rpartition(".")
        if name.startswith(".") or suffix not in ("erofs", "entries", "json"):
            garbage.append(_garbage("leftover", name, path, status))
        elif key not in keys and status.st_ctime < before:
            garbage.append(_garbage("layer" if suffix == "erofs" else "record", key, path, status))
    for name, path, status in _files(store.layout.blobs):
        digest = f"sha256:{name}"
        if not is_digest(digest):
            garbage.append(_garbage("leftover", name, path, status))
        elif digest not in blobs and status.st_ctime < before:
            garbage.append(_garbage("blob", digest, path, status))
    return garbage


def remove_garbage(garbage: list[Garbage]) -> int:
    """Bytes that are free now."""
    for item in garbage:
        with suppress(FileNotFoundError):
            os.unlink(item.path)
    return sum(item.size for item in garbage)


def _sort_records(store: Store, spared: Spared, before: float, garbage: list[Garbage]) -> list[ImageRecord]:
    """The records that stay; the others become garbage."""
    found: list[tuple[str, str, os.stat_result, ImageRecord]] = []
    kept = {name for name, _, _ in _files(store.layout.kept)}
    for name, path, status in _files(store.layout.images):
        record = None if name.startswith(".") or not name.endswith(".json") else load_record(path, ImageRecord)
        if record is None:
            garbage.append(_garbage("leftover", name, path, status))
        else:
            found.append((name.removesuffix(".json"), path, status, record))
    pins: set[str] = set()
    live: list[ImageRecord] = []
    for name, path, status, record in sorted(found, key=lambda f: is_pin_name(f[0])):  # references before pins
        wanted = record.reference in spared.references or bool({record.manifest, record.pin} & spared.digests)
        if wanted or name in kept or name in pins or status.st_mtime >= before:
            live.append(record)
            pins.update(record_names(record)[1:])
        else:
            kind = "record" if is_pin_name(name) else "image"
            garbage.append(_garbage(kind, record.pin if kind == "record" else record.reference, path, status))
    return live


def _files(directory: str) -> Iterator[tuple[str, str, os.stat_result]]:
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return
    for name in names:
        with suppress(FileNotFoundError):
            yield name, f"{directory}/{name}", os.stat(f"{directory}/{name}", follow_symlinks=False)


def _garbage(kind: str, name: str, path: str, status: os.stat_result) -> Garbage:
    return Garbage(kind, name, status.st_blocks * 512, path)
