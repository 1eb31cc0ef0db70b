# SPDX-License-Identifier: Apache-2.0
"""`podctl image import`, and `podctl fetch` for those who are not root: images by way of the incoming directory."""

import argparse
import os
import sys
import tempfile

from rktd_units.cli.images import LAYOUT, open_store
from rktd_units.errors import EX_FAILED, ImageError, RktdError, TemporaryError, clean_text
from rktd_units.images.incoming import (
    bound_incoming,
    complete_layout,
    list_deliveries,
    new_delivery,
    read_reference,
    remove_delivery,
)
from rktd_units.images.progress import FETCHING, READY, Event, Part, Progress
from rktd_units.images.ready import IF_NOT_PRESENT, NEVER, PINNED, Image, find_rule, ready_image, resolve_reference
from rktd_units.images.reference import REGISTRY, Reference
from rktd_units.images.store import Store
from rktd_units.settings import Settings, load_settings


def run(arguments: argparse.Namespace) -> int:
    """Take over what is there. What is not trusted, or cannot be had, is thrown away; what a passing failure stopped stays for a day."""
    open_store()
    settings = load_settings(LAYOUT.config)
    code, seen = 0, set[str]()
    while True:  # what comes meanwhile starts no other run
        for name in bound_incoming(LAYOUT):
            print(f"podctl: removed {clean_text(name, 100)}: too old, too large, too many, or no image", file=sys.stderr)
        new = [name for name in list_deliveries(LAYOUT.incoming) if name not in seen]
        if not new:
            return code
        seen.update(new)
        for delivery in new:
            code = _take_over(delivery, settings) or code


def _take_over(delivery: str, settings: Settings) -> int:
    """The exit code of this one."""
    code = 0
    try:
        image = _import(delivery, settings)
        print(f"imported {image.reference}, {image.manifest_digest}, verified by {image.verified_by}", file=sys.stderr)
    except TemporaryError as error:
        print(f"podctl: {error}", file=sys.stderr)
        return error.exit_code
    except RktdError as error:
        print(f"podctl: {error}", file=sys.stderr)
        code = EX_FAILED
    if not remove_delivery(LAYOUT, delivery):
        print(f"podctl: {clean_text(delivery, 100)} in {LAYOUT.incoming} cannot be removed", file=sys.stderr)
        code = EX_FAILED
    return code


def _import(delivery: str, settings: Settings) -> Image:
    """The reference is a stranger's: no file of this host is read for it, and for a pinned one no registry is asked."""
    reference = resolve_reference(read_reference(LAYOUT, delivery), Store(LAYOUT))
    if reference.kind != REGISTRY:
        raise ImageError(f"{reference}: is not imported, since it is no registry's", hint=f"podctl fetch {reference}, as root")
    policy = NEVER if find_rule(reference, settings) == PINNED else IF_NOT_PRESENT
    return ready_image(str(reference), policy, settings, LAYOUT, lambda event: None)


def deliver_images(references: list[str], progress: Progress) -> list[tuple[Reference, str]]:
    """Fetch as the user that we are, into the incoming directory. The digests are what the registry says."""
    return [_deliver(resolve_reference(text, Store(LAYOUT)), progress) for text in references]


def _deliver(reference: Reference, progress: Progress) -> tuple[Reference, str]:
    from rktd_units.images.registries import find_access
    from rktd_units.images.registry import open_access, pull_image

    settings = load_settings(LAYOUT.config)
    parts: dict[str, Part] = {}

    def note(digest: str, done: int, total: int) -> None:
        parts[digest] = Part(digest, done, total)
        progress(Event(FETCHING, str(reference), tuple(parts.values())))

    progress(Event(FETCHING, str(reference)))
    with new_delivery(LAYOUT, reference) as blobs, tempfile.TemporaryDirectory() as secrets:
        for name, data in find_access(reference, settings, LAYOUT).items():
            with open(os.open(f"{secrets}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(data)
        with open_access(secrets) as (_, registries):
            digest = pull_image(reference, registries, (), blobs, settings.max_image_bytes, note)
        complete_layout(blobs, reference, digest)
    progress(Event(READY, str(reference)))
    return reference, digest
