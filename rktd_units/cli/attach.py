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
_BLOCK = 65536
_LAST_WORDS = 0.5  # seconds for what journald has still to write, where it cannot be asked


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
    matches = render_matches(pod, app, current=True)
    follow(matches if arguments.from_start else [*matches, *_find_now()], lambda: _look(pod, app)["state"] == "active")
    return _wait_for_code(pod, app)


def follow(matches: list[str], goes_on: Callable[[], bool]) -> None:
    """Prints the lines of the journal that match, new ones too, until `goes_on` says no, and all that were written until then."""
    from rktd_units.proc import run as run_program
    from rktd_units.proc import start

    command = ["journalctl", "--quiet", "--output=cat", "--no-pager", "--lines=all", *matches]
    journal = start([*command, "--follow"])
    assert journal.stdout is not None
    printed = 0
    try:
        while goes_on():
            printed += _pass_on(journal.stdout.fileno(), _STEP)
        if run_program(["journalctl", "--sync"], check=False).returncode:  # only root may ask
            printed += _pass_on(journal.stdout.fileno(), _LAST_WORDS)
    finally:
        journal.kill()
        journal.wait()
    with start(command) as journal:  # the rest: when journalctl would have seen it, nobody knows
        assert journal.stdout is not None
        while printed and (data := journal.stdout.read(min(printed, _BLOCK))):
            printed -= len(data)
        while data := journal.stdout.read(_BLOCK):
            _print(data)


def _find_now() -> list[str]:
    """What lets journalctl begin with what is logged from now on."""
    from rktd_units.proc import run as run_program

    output = run_program(["journalctl", "--quiet", "--output=cat", "--lines=1", "--show-cursor"]).stdout.decode("utf-8", "replace")
    cursor = output.rpartition("-- cursor: ")[2].strip()
    return [f"--after-cursor={cursor}"] if "-- cursor: " in output else []


def _wait_for_code(pod: str, app: str) -> int:
    """The exit code of an app that has ended; 0 if nobody will ever know. None does between its pod's end and stage0's record."""
    while True:
        record = Host().describe([pod])[0]
        code = _find_app(record, app)["exitCode"]
        if code is not None:
            return int(code)
        if record["state"] in ("inactive", "failed") and record["stage0"]["state"] in ("inactive", "failed"):
            return 0
        time.sleep(_STEP)


def _look(pod: str, app: str) -> Record:
    return _find_app(Host().describe([pod])[0], app)


def _find_app(record: Record, app: str) -> Record:
    found: Record = next((a for a in record["apps"] if a["name"] == app), {"state": "inactive", "exitCode": None})
    return found


def _pass_on(descriptor: int, seconds: float) -> int:
    """What comes within a time, in bytes."""
    end = time.monotonic() + seconds
    count = 0
    while (left := end - time.monotonic()) > 0 and select.select([descriptor], [], [], left)[0]:
        data = os.read(descriptor, _BLOCK)
        if not data:
            time.sleep(left)
            break
        _print(data)
        count += len(data)
    return count


def _print(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
