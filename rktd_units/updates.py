# SPDX-License-Identifier: Apache-2.0
"""What an update of a pod notes on disk: what to go back to, and which images are not to be tried again.

A note is written before the first thing is changed and goes, or becomes one of a roll-back, after the last: whoever is killed in between
leaves what the next run needs. In starts of such pods: imports little.
"""

import json
import os
from typing import Any, NamedTuple

from rktd_units.images.ready import IF_NOT_PRESENT, NEVER, ImageRequest, resolve_reference
from rktd_units.images.records import ImageRecord, Voucher, reference_name, sync_directory
from rktd_units.images.reference import parse_reference
from rktd_units.images.store import Store
from rktd_units.paths import Layout
from rktd_units.runfiles import list_names, read_text, write_text
from rktd_units.trust.vouchers import load_voucher, save_voucher

_VERSION = 1
TRYING = "trying"  # it goes on, or was killed
REVERTING = "reverting"  # so is its roll-back
HELD = "held"  # that is done: `new` is not tried again while the tag stands for it


class Held(NamedTuple):
    """One image of a pod: manifests' digests, the pin by which the old one's record is found, and the voucher for it as JSON, or None."""

    reference: str
    old: str
    new: str
    pin: str
    voucher: dict[str, Any] | None


class Note(NamedTuple):
    phase: str
    images: tuple[Held, ...]


def load_note(layout: Layout, name: str) -> Note | None:
    """None where there is none, or one that nobody understands: then there is nothing to go back to."""
    try:
        value = json.loads(read_text(layout.update_state(name)) or "{}")
        if value.get("version") != _VERSION or value.get("phase") not in (TRYING, REVERTING, HELD):
            return None
        return Note(value["phase"], tuple(Held(**image) for image in value["images"]))
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


def save_note(layout: Layout, name: str, note: Note) -> None:
    os.makedirs(layout.updates, mode=0o700, exist_ok=True)
    value = {"version": _VERSION, "phase": note.phase, "images": [image._asdict() for image in note.images]}
    write_text(layout.update_state(name), json.dumps(value, indent=2) + "\n")
    sync_directory(layout.updates)


def remove_note(layout: Layout, name: str) -> None:
    if os.path.exists(layout.update_state(name)):
        os.unlink(layout.update_state(name))
        sync_directory(layout.updates)


def hold_requests(layout: Layout, name: str, requests: list[ImageRequest]) -> list[ImageRequest]:
    """No start asks the registry for an image that is being tried, or was rolled back."""
    note, store = load_note(layout, name), Store(layout)
    held = {image.reference for image in note.images} if note else set()
    return [
        request._replace(policy=IF_NOT_PRESENT)
        if request.policy != NEVER and str(resolve_reference(request.reference, store)) in held
        else request
        for request in requests
    ]


def held_digests(layout: Layout) -> frozenset[str]:
    """Those that a roll-back may need: they are not collected."""
    names = [name.removesuffix(".json") for name in list_names(layout.updates)]
    notes = [load_note(layout, name) for name in names]
    return frozenset(digest for note in notes if note for image in note.images for digest in (image.old, image.pin))


def orphaned_notes(layout: Layout, pods: frozenset[str]) -> list[str]:
    """The pods with a note that are neither among `pods` nor run."""
    names = [name.removesuffix(".json") for name in list_names(layout.updates)]
    return [name for name in names if name not in pods and not os.path.exists(layout.pod(name))]


def note_image(store: Store, reference: str, old: str, new: str) -> Held | None:
    """What is needed to make `reference` mean the manifest `old` again; None if the store has it no more."""
    record = store.find_image(reference)
    if record is None or record.manifest != old:
        record = _find_manifest(store, reference, old)
    if record is None:
        return None
    voucher = load_voucher(store.layout, reference)
    if voucher is not None and voucher.digest not in (record.pin, record.manifest):
        voucher = None
    return Held(reference, old, new, record.pin, voucher._asdict() if voucher else None)


def restore_image(store: Store, held: Held) -> bool:
    """Makes the reference mean what it meant; False if that is not in the store any more. Whether it is trusted is asked at its start."""
    record = store.find_pin(parse_reference(held.reference).kind, held.pin)
    if record is None:
        return False
    with store.lock(f"image-{reference_name(held.reference)}"):
        store.write_image(record._replace(reference=held.reference))
        if held.voucher:
            save_voucher(store.layout, Voucher(**held.voucher))
    return True


def _find_manifest(store: Store, reference: str, digest: str) -> ImageRecord | None:
    """A record of the manifest, whatever it was called."""
    kind = parse_reference(reference).kind
    return next((r for r in store.list_pins() if r.manifest == digest and parse_reference(r.reference).kind == kind), None)
