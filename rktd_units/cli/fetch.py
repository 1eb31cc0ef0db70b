# SPDX-License-Identifier: Apache-2.0
"""`podctl fetch`: images into the store before a pod needs them, with bars on a terminal and plain lines elsewhere."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module  # tqdm has no types
from typing import Any

from rktd_units.cli import output
from rktd_units.cli.images import LAYOUT, open_store
from rktd_units.images.progress import CONVERTING, READY, Event, Progress
from rktd_units.images.ready import ALWAYS, IF_NOT_PRESENT, Image, ImageRequest, ready_images
from rktd_units.settings import load_settings

_COLUMNS = (
    output.Column("REFERENCE", lambda r: output.format_text(r["reference"])),
    output.Column("DIGEST", lambda r: r["digest"]),
    output.Column("VERIFIED BY", lambda r: output.format_text(r["verifiedBy"])),
)
_BAR = "{desc} {bar} {n_fmt}/{total_fmt} {rate_fmt}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="references, as in pod files")
    parser.add_argument("--if-not-present", action="store_true", help="do not ask whether the tag of an image that is here has moved")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")
    output.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prints what each reference was resolved to. Who is not root fetches into the incoming directory, and root takes over from there."""
    if os.geteuid() != 0:
        return _deliver(arguments)
    open_store()
    for number in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C: jobs of systemd do not end with us
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    policy = IF_NOT_PRESENT if arguments.if_not_present else ALWAYS
    requests = [ImageRequest(text, policy) for text in arguments.images]
    with shown_progress(quiet=arguments.quiet) as progress:
        images = ready_images(requests, load_settings(LAYOUT.config), LAYOUT, progress)
    output.print_records(arguments, [_describe(image) for image in images], _COLUMNS, "image")
    return 0


def _deliver(arguments: argparse.Namespace) -> int:
    from rktd_units.cli.incoming import deliver_images

    with shown_progress(quiet=arguments.quiet) as progress:
        delivered = deliver_images(arguments.images, progress)
    records = [{"reference": str(r), "digest": digest, "verifiedBy": None} for r, digest in delivered]
    output.print_records(arguments, records, _COLUMNS, "image")
    if not arguments.quiet:
        print("root verifies them and takes them over: systemctl status rktd-incoming", file=sys.stderr)
    return 0


def _describe(image: Image) -> dict[str, Any]:
    return {"reference": image.reference, "digest": image.manifest_digest, "verifiedBy": image.verified_by}


@contextmanager
def shown_progress(*, quiet: bool) -> Iterator[Progress]:
    """To standard error: a bar for each layer where that is a terminal, else a line for each change of stage."""
    if quiet:
        yield lambda event: None
    elif sys.stderr.isatty():
        bars = _Bars(import_module("tqdm").tqdm)  # 50 ms, nothing beside a fetch
        try:
            yield bars
        finally:
            bars.close()
    else:
        yield _Lines()


class _Lines:
    """The stages, and between them a line every few seconds at most."""

    _INTERVAL = 5.0  # seconds

    def __init__(self) -> None:
        self._told: dict[str, tuple[str, float]] = {}

    def __call__(self, event: Event) -> None:
        from time import monotonic

        stage, when = self._told.get(event.reference, ("", 0.0))
        now = monotonic()
        if event.stage != stage or now - when >= self._INTERVAL:
            self._told[event.reference] = (event.stage, now)
            print(event, file=sys.stderr, flush=True)


class _Bars:
    """One bar for each layer of each stage, kept by `make`, which is tqdm."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make
        self._bars: dict[tuple[str, str, str], Any] = {}

    def __call__(self, event: Event) -> None:
        if not event.parts and event.stage != READY:
            self._make.write(f"{event}", file=sys.stderr)  # type: ignore[attr-defined]
        for part in event.parts:
            key = (event.reference, event.stage, part.digest)
            bar = self._bars.get(key)
            if bar is None:
                what = "convert" if event.stage == CONVERTING else "fetch"
                options = {"unit": "B", "unit_scale": True, "unit_divisor": 1024, "bar_format": _BAR, "dynamic_ncols": True}
                bar = self._make(total=part.total, desc=f"  {what:7} {part.digest[7:19]}", file=sys.stderr, **options)
                self._bars[key] = bar
            bar.update(part.done - bar.n)
        if event.stage == READY:
            self._finish(event.reference)

    def _finish(self, reference: str) -> None:
        """The last file of a job may be older than its end."""
        for (owner, _, _), bar in list(self._bars.items()):
            if owner == reference:
                bar.update(bar.total - bar.n)

    def close(self) -> None:
        for bar in self._bars.values():
            bar.close()
