# SPDX-License-Identifier: Apache-2.0
"""`podctl gc`: removes images that nobody needs, and what crashes left. rktd-gc.timer runs it once a day."""

import argparse
import os
import sys
import time

from rktd_units.cli import output
from rktd_units.cli.images import LAYOUT, find_image_usage, open_store
from rktd_units.disks import forget_disks
from rktd_units.errors import UsageError
from rktd_units.images.collect import Garbage, find_garbage, remove_garbage
from rktd_units.images.store import told_errors
from rktd_units.paths import pod_search_path
from rktd_units.podfile.search import find_pods

GRACE = "7d"
_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400, "w": 604800}
_COLUMNS = (
    output.Column("KIND", lambda r: r["kind"]),
    output.Column("NAME", lambda r: output.format_text(r["name"])),
    output.Column("SIZE", lambda r: output.format_bytes(r["bytes"]), right=True),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--grace", default=GRACE, metavar="TIME", help=f"spare what was used since: 30min, 12h, 7d; default: {GRACE}")
    parser.add_argument("-n", "--dry-run", action="store_true", help="tell what would go, and remove nothing")
    output.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prints what is gone (or would go). Raises TemporaryError while an image is being fetched."""
    before = time.time() - parse_time(arguments.grace)
    store = open_store()
    with told_errors():
        found = _sweep(dry_run=arguments.dry_run)
        with store.alone():
            usage = find_image_usage()
            garbage = find_garbage(store, usage.spared(), before)
            if not arguments.dry_run:
                remove_garbage(garbage)
                forget_disks(LAYOUT)
        found += garbage
        found += _bound_incoming(dry_run=arguments.dry_run)
    for path in usage.faults:
        print(f"podctl: {path} is not valid; what looks like an image in it is spared", file=sys.stderr)
    output.print_records(arguments, [{"kind": g.kind, "name": g.name, "bytes": g.size} for g in found], _COLUMNS, "thing")
    return 0


def parse_time(text: str) -> int:
    """Seconds of a systemd-like time span of one part: 90, 30min, 12h, 7d. Raises UsageError."""
    digits = text.rstrip("".join(_UNITS))
    unit = text[len(digits) :] or "s"
    if not digits.isascii() or not digits.isdigit() or len(digits) > 9 or unit not in _UNITS:
        raise UsageError(f"'{text}' is not a time", hint=f"a number and one of {', '.join(_UNITS)}")
    return int(digits) * _UNITS[unit]


def _bound_incoming(*, dry_run: bool) -> list[Garbage]:
    from rktd_units.images.incoming import bound_incoming

    return [] if dry_run else [Garbage("leftover", f"incoming {name}", 0, "") for name in bound_incoming(LAYOUT)]


def _sweep(*, dry_run: bool) -> list[Garbage]:
    """Jobs without a parent, and pods that never were released."""
    from rktd_units.images.jobs import find_stale, remove_stale
    from rktd_units.sweep import sweep_pods
    from rktd_units.updates import orphaned_notes, remove_note

    store = open_store()
    store.prepare()
    jobs = find_stale(store) if dry_run else remove_stale(store)
    found = [Garbage("leftover", f"job {name}", 0, "") for name in jobs]
    for name in orphaned_notes(LAYOUT, frozenset(entry.name for entry in find_pods(pod_search_path(dict(os.environ))).entries)):
        found.append(Garbage("leftover", f"update of pod {name}", 0, ""))
        if not dry_run:
            remove_note(LAYOUT, name)
    return found + [Garbage("leftover", f"pod {name}", 0, "") for name in sweep_pods(LAYOUT, dry_run=dry_run)]
