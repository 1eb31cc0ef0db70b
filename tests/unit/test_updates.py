# SPDX-License-Identifier: Apache-2.0
"""Notes of updates: what a killed run leaves, and what of it counts."""

from pathlib import Path

import pytest

from rktd_units.images.ready import ALWAYS, IF_NOT_PRESENT, NEVER, ImageRequest
from rktd_units.images.records import CONVERTER_VERSION, VERSION, ImageRecord, Voucher
from rktd_units.images.store import Store
from rktd_units.paths import Layout
from rktd_units.trust.vouchers import load_voucher, save_voucher
from rktd_units.updates import (
    HELD,
    TRYING,
    Held,
    Note,
    held_digests,
    hold_requests,
    load_note,
    note_image,
    orphaned_notes,
    remove_note,
    restore_image,
    save_note,
)

OLD, NEW, PIN, NEW_PIN = (f"sha256:{digit * 64}" for digit in "abcd")
REFERENCE = "ex.org/app:1"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(str(tmp_path))
    Store(layout).prepare()
    return layout


def record(manifest: str, pin: str) -> ImageRecord:
    return ImageRecord(VERSION, REFERENCE, pin, manifest, OLD, ("key",), True, CONVERTER_VERSION, "insecure", 1)


def test_a_note_is_read_as_it_was_written(layout: Layout) -> None:
    note = Note(TRYING, (Held(REFERENCE, OLD, NEW, PIN, None),))
    assert load_note(layout, "web") is None
    save_note(layout, "web", note)
    assert load_note(layout, "web") == note
    assert held_digests(layout) == {OLD, PIN}
    assert orphaned_notes(layout, frozenset({"web"})) == []
    assert orphaned_notes(layout, frozenset()) == ["web"]
    remove_note(layout, "web")
    remove_note(layout, "web")
    assert (load_note(layout, "web"), held_digests(layout)) == (None, frozenset())


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 2}', '{"version": 1, "phase": "held", "images": [{}]}'])
def test_a_note_that_is_none(layout: Layout, text: str) -> None:
    save_note(layout, "web", Note(HELD, ()))
    Path(layout.update_state("web")).write_text(text)
    assert load_note(layout, "web") is None
    assert held_digests(layout) == frozenset()


def test_what_is_held_is_not_asked_for(layout: Layout) -> None:
    save_note(layout, "web", Note(HELD, (Held(REFERENCE, OLD, NEW, PIN, None),)))
    requests = [ImageRequest(text, policy) for text in (REFERENCE, "ex.org/other:1") for policy in (ALWAYS, NEVER)]
    policies = [request.policy for request in hold_requests(layout, "web", requests)]
    assert policies == [IF_NOT_PRESENT, NEVER, ALWAYS, NEVER]


def test_there_and_back(layout: Layout) -> None:
    """The old image is found by its pin once the reference has moved."""
    store = Store(layout)
    store.write_image(record(OLD, PIN))
    held = note_image(store, REFERENCE, OLD, NEW)
    assert held == Held(REFERENCE, OLD, NEW, PIN, None)
    store.write_image(record(NEW, NEW_PIN))
    assert note_image(store, REFERENCE, OLD, NEW) == held
    assert restore_image(store, held)
    assert store.find_image(REFERENCE) == record(OLD, PIN)
    assert note_image(store, REFERENCE, f"sha256:{'e' * 64}", NEW) is None
    assert not restore_image(store, held._replace(pin=f"sha256:{'e' * 64}"))


def test_what_was_signed_is_signed_again(layout: Layout) -> None:
    """The signature of what runs is kept, and takes the place of the new one's; one of something else is none of it."""
    store = Store(layout)
    store.write_image(record(OLD, PIN))
    old, new = (Voucher(VERSION, REFERENCE, "simple", "f", "", digest, REFERENCE, "k", 0, "s", "") for digest in (PIN, NEW_PIN))
    save_voucher(layout, old)
    held = note_image(store, REFERENCE, OLD, NEW)
    assert held is not None
    save_note(layout, "web", Note(TRYING, (held,)))
    store.write_image(record(NEW, NEW_PIN))
    save_voucher(layout, new)
    note = load_note(layout, "web")
    assert note is not None
    assert restore_image(store, note.images[0])
    assert load_voucher(layout, REFERENCE) == old
    save_voucher(layout, new)
    found = note_image(store, REFERENCE, OLD, NEW)
    assert found is not None
    assert found.voucher is None
