# SPDX-License-Identifier: Apache-2.0
"""`podctl wait`: until pods are ready, stopped or deleted."""

import argparse
import time

from rktd_units.cli.pods import Host, split_unit
from rktd_units.errors import FailedError, TemporaryError, UsageError
from rktd_units.names import is_pod_name

_STEP = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """NAME... --for=ready"""
    parser.add_argument("names", nargs="+", metavar="NAME", help="pods")
    parser.add_argument(
        "--for", dest="state", choices=("ready", "stopped", "deleted"), default="ready", metavar="STATE", help="ready, stopped or deleted"
    )
    parser.add_argument("--timeout", type=_parse_seconds, metavar="SECONDS", help="give up after that time, with exit code 75")


def run(arguments: argparse.Namespace) -> int:
    """Ready: it and each of its apps is active. Stopped: neither runs nor is about to.

    Deleted: stopped, and neither a file nor anything of its run is there.
    """
    end = time.monotonic() + arguments.timeout if arguments.timeout is not None else None
    names = [split_unit(name) for name in arguments.names]
    if arguments.state == "deleted":
        for name in names:
            if not is_pod_name(name):
                raise UsageError(f"{name!r} is not a pod name")
    else:
        names = Host().require(names)
    for name in names:
        while not _is_reached(name, arguments.state):
            if end is not None and time.monotonic() >= end:
                raise TemporaryError(f"pod {name} is not {arguments.state} after {arguments.timeout:g} s")
            time.sleep(_STEP)
    return 0


def _is_reached(name: str, state: str) -> bool:
    host = Host()
    active, _ = host.state(name)
    if state == "ready":
        if active == "failed":
            raise FailedError(f"pod {name} has failed", hint=f"podctl status {name}")
        if active != "active":
            return False
        record = host.describe([name])[0]
        return bool(record["appsReady"] == record["appsTotal"])
    if active not in ("inactive", "failed"):
        return False
    return state == "stopped" or not (name in host.entries or host.has_directory(name))


def _parse_seconds(text: str) -> float:
    try:
        seconds = float(text.removesuffix("s"))
    except ValueError:
        seconds = -1
    if not 0 <= seconds < 1e9:
        raise UsageError(f"'{text}' is not a number of seconds")
    return seconds
