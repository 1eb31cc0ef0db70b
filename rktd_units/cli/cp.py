# SPDX-License-Identifier: Apache-2.0
"""`podctl cp`: files between the host and an app. No program of the app takes part, and no path leaves either side's directory.

The app's side is hostile: see rktd_units.copying. What is written there is written as the app's user, who owns it then; what comes from
there belongs to root and has no set-user-ID bits. In a Xen guest the same code works at that end of the way of `podctl exec`.
"""

import argparse
import json
import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from threading import Thread
from typing import Any

from rktd_units import copying
from rktd_units.cgroups import app_cgroup, leader_of
from rktd_units.cli.exec import is_guest, require_root, wait_for_app, wait_for_guest
from rktd_units.cli.pods import Host, load_run_app
from rktd_units.enter import check_process, describe_app
from rktd_units.errors import FailedError, UnavailableError, UsageError, clean_text

GuestCall = Callable[[dict[str, Any], tuple[int, int, int]], int]  # an order and the standard streams for it; gives the exit code


_SAID_MAX = 4096  # bytes of what a guest says beside a copy


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """SOURCE TARGET"""
    parser.add_argument("source", metavar="SOURCE", help="a path, or POD/APP:PATH")
    parser.add_argument("target", metavar="TARGET", help="the same; an existing directory is copied into")


def run(arguments: argparse.Namespace) -> int:
    """Exactly one of the two is in an app."""
    from_app, source = _split(arguments.source)
    to_app, target = _split(arguments.target)
    if bool(from_app) == bool(to_app):
        raise UsageError("one of source and target must be POD/APP:PATH, the other a path of the host")
    require_root("copy from and to apps")
    host = Host()
    pod, app = host.require_app(from_app or to_app)
    call = _guest_call(host, pod, app) if is_guest(host, pod) else None
    root = -1 if call else _open_root(host, pod, app)
    copy = Copy()
    try:
        if from_app:
            copy.copy_from_guest(call, source, target) if call else copy.copy_out(root, source, target)
        else:
            run_record, record = load_run_app(host.layout, pod, app)
            app_ids = describe_app(run_record, record, "")
            copy.copy_to_guest(call, source, target, app_ids) if call else copy.copy_in(source, root, target, app_ids)
    except OSError as error:
        raise FailedError(f"{clean_text(error.filename or arguments.target)}: {clean_text(error.strerror or '').lower()}") from error
    return 1 if copy.skipped else 0


def _guest_call(host: Host, pod: str, app: str) -> GuestCall:
    from rktd_units.cli.guest import run_in_guest

    path = wait_for_guest(host, pod)

    def call(order: dict[str, Any], streams: tuple[int, int, int]) -> int:
        text = json.dumps({"app": app, "terminal": False, **order})
        return run_in_guest(path, pod, text, terminal=False, interactive=True, streams=streams)

    return call


def _open_root(host: Host, pod: str, app: str) -> int:
    """The app's root directory, of the app itself: after the pidfd was opened its pid is nobody else's while it is alive."""
    pid = wait_for_app(host, pod, app)
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        raise UnavailableError(f"app {app} of pod {pod} has ended") from None
    try:
        check_process(pid, app_cgroup(host.cgroup(pod), app), leader_of(pod))
        root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        if not select.select([process], [], [], 0)[0]:
            return root
        os.close(root)
    except (FileNotFoundError, ProcessLookupError):
        pass
    except PermissionError as error:
        raise UnavailableError(f"app {app} of pod {pod}: {error.filename}: {error.strerror}") from error
    finally:
        os.close(process)
    raise UnavailableError(f"app {app} of pod {pod} has ended")


class Copy:
    """One run; `skipped` counts what is of no kind that is copied."""

    def __init__(self) -> None:
        self.skipped = 0

    def copy_out(self, root: int, source: str, target: str) -> None:
        """A path inside the root -> a path of the host."""
        self._host_writer(source, target).write(copying.read_items(copying.open_source(root, source), copying.last_name(source)))

    def copy_in(self, source: str, root: int, target: str, ids: dict[str, Any]) -> None:
        """The other way; `ids`: who writes, as enter.describe_app has it."""
        opened, name = _open_host(source)
        directory, name = copying.find_place(root, target, name, inside=True)
        base = ids["id_base"]
        user, groups = (base + ids["uid"], base + ids["gid"]), [base + group for group in ids["groups"]]
        copying.Writer(directory, name, user, self._skip, groups).write(copying.read_items(opened, name))

    def copy_from_guest(self, call: GuestCall, source: str, target: str) -> None:
        """As `copy_out`, with the walk done in the guest, which is believed no more than an app's files are."""
        writer = self._host_writer(source, target)

        def receive(into: int, out: int) -> None:
            os.close(into)
            try:
                writer.write(copying.unpack_items(lambda size: os.read(out, size)))
            finally:
                os.close(out)

        _with_guest(call, {"copy": "out", "path": source}, receive)

    def copy_to_guest(self, call: GuestCall, source: str, target: str, ids: dict[str, Any]) -> None:
        """As `copy_in`. What goes wrong there comes back."""
        opened, name = _open_host(source)

        def send(into: int, out: int) -> None:
            try:
                with suppress(BrokenPipeError):  # it will tell why it has gone
                    for part in copying.pack_items(self._kept(copying.read_items(opened, name))):
                        copying.write_all(into, part)
                os.close(into)
                for item in copying.unpack_items(lambda size: os.read(out, size)):
                    copying.raise_fault(item)
            finally:
                os.close(out)

        _with_guest(call, {"copy": "in", "path": target, "name": name, **{key: ids[key] for key in ("uid", "gid", "groups")}}, send)

    def _host_writer(self, source: str, target: str) -> copying.Writer:
        here = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        place = copying.find_place(here, target, copying.last_name(source), inside=False)
        return copying.Writer(*place, (0, 0), self._skip)

    def _kept(self, items: Iterator[copying.Item]) -> Iterator[copying.Item]:
        for item in items:
            if item.kind == copying.SKIPPED:
                self._skip(os.fsdecode(item.body))
            else:
                yield item

    def _skip(self, name: str) -> None:
        self.skipped += 1
        print(f"podctl: {clean_text(name)}: is not copied: neither file, directory nor link", file=sys.stderr)


def _open_host(source: str) -> tuple[int, str]:
    return os.open(source, os.O_PATH | os.O_CLOEXEC), os.path.basename(os.path.abspath(source))


def _with_guest(call: GuestCall, order: dict[str, Any], work: Callable[[int, int], None]) -> None:
    """Has the guest carry out an order while a thread does `work` with the other ends of its standard input and output, which it closes."""
    (theirs_in, into), (out, theirs_out), (errors, theirs_errors) = os.pipe(), os.pipe(), os.pipe()
    faults: list[OSError] = []
    said = bytearray()

    def run() -> None:
        try:
            work(into, out)
        except OSError as error:
            faults.append(error)

    def listen() -> None:
        with open(errors, "rb", buffering=0) as stream:
            while data := stream.read(_SAID_MAX):
                said.extend(data[: _SAID_MAX - len(said)])

    threads = [Thread(target=target, daemon=True) for target in (run, listen)]
    for thread in threads:
        thread.start()
    code = 1
    try:
        with suppress(BrokenPipeError):  # the worker has had enough
            code = call(order, (theirs_in, theirs_out, theirs_errors))
    finally:
        for descriptor in (theirs_in, theirs_out, theirs_errors):
            os.close(descriptor)
        for thread in threads:  # what was begun is taken away
            thread.join()
        for line in said.decode("utf-8", "replace").splitlines():
            print(f"podctl: the guest says: {clean_text(line)}", file=sys.stderr)
    if faults:
        raise faults[0]
    if code:
        raise FailedError(f"the guest has not copied all of it: exit code {code}")


def _split(text: str) -> tuple[str, str]:
    """("POD/APP", path) or ("", path)."""
    head, colon, path = text.partition(":")
    if not colon or head.startswith((".", "/")):
        return "", text
    return head, path or "/"
