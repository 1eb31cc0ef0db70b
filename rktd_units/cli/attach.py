# SPDX-License-Identifier: Apache-2.0
"""`podctl attach`: an app's output from now on, until it ends; its exit code is podctl's. An app has no input: it is a unit."""

import argparse
import os
import select
import sys
import time
from collections.abc import Callable

from rktd_units.cli.logs import render_matches, require_journal
from rktd_units.cli.output import Record
from rktd_units.cli.pods import Host
from rktd_units.errors import UnavailableError

_STEP = 0.2  # seconds
_LAST_WORDS = 0.5  # seconds for what journald has still to write


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """POD/APP"""
    parser.add_argument("target", metavar="POD/APP", help="the app; the pod is enough where it has only one")
    parser.add_argument("--from-start", action="store_true", help="begin with what it has said in this run")


def run(arguments: argparse.Namespace) -> int:
    """The app's exit code; 0 when it is unknown."""
    host = Host()
    pod, app = host.require_app(arguments.target)
    if _look(pod, app)["state"] != "active":
        raise UnavailableError(f"app {app} of pod {pod} does not run", hint=f"podctl logs {pod}/{app}")
    require_journal()
    matches = [*render_matches(pod, app, current=True), f"--lines={'all' if arguments.from_start else '0'}"]
    follow(matches, lambda: _look(pod, app)["state"] == "active")
    return int(_look(pod, app)["exitCode"] or 0)


def follow(matches: list[str], goes_on: Callable[[], bool]) -> None:
    """Prints the lines of the journal that match, new ones too, until `goes_on` says no."""
    from rktd_units.proc import start

    journal = start(["journalctl", "--quiet", "--follow", "--output=cat", *matches])
    assert journal.stdout is not None
    try:
        while goes_on():
            _pass_on(journal.stdout.fileno(), _STEP)
        _pass_on(journal.stdout.fileno(), _LAST_WORDS)
    finally:
        journal.kill()
        journal.wait()


def _look(pod: str, app: str) -> Record:
    record = Host().describe([pod])[0]
    found: Record = next((a for a in record["apps"] if a["name"] == app), {"state": "inactive", "exitCode": None})
    return found


def _pass_on(descriptor: int, seconds: float) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and select.select([descriptor], [], [], left)[0]:
        data = os.read(descriptor, 65536)
        if not data:
            time.sleep(left)
            return
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
