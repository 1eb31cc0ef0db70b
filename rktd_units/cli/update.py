# SPDX-License-Identifier: Apache-2.0
"""`podctl update`: restarts pods whose images' tags have moved, and goes back where the new image does not become ready.

Only pods that run. Order, for each pod: look where its tags lead now; note what to go back to (updates.py); fetch and verify, which changes
what the tags mean here; restart; watch; forget the note, or go back. Killed anywhere, the next run finds the note and ends it first.
"""

import argparse
import asyncio
import time
from contextlib import suppress
from typing import Any, NamedTuple

from rktd_units.cli import output
from rktd_units.cli.fetch import shown_progress
from rktd_units.cli.images import LAYOUT, open_store
from rktd_units.cli.output import Column, Record, format_text
from rktd_units.cli.pods import Host, load_model, load_run, read_error
from rktd_units.errors import EX_FAILED, RktdError, UsageError, clean_text
from rktd_units.events import EVENTS
from rktd_units.images.acquire import find_remote_digest
from rktd_units.images.progress import Progress
from rktd_units.images.ready import ALWAYS, IF_NOT_PRESENT, NEVER, ImageRequest, ready_images, resolve_reference
from rktd_units.images.reference import REGISTRY
from rktd_units.images.store import Store
from rktd_units.journal import Journal
from rktd_units.names import pod_unit
from rktd_units.runfiles import lock
from rktd_units.settings import Settings, load_settings
from rktd_units.updates import HELD, REVERTING, TRYING, Held, Note, load_note, note_image, remove_note, restore_image, save_note

_SETTLE = 3.0  # seconds in which a pod that has become ready must not fall over
_STEP = 0.2
_PATIENCE = 300.0  # seconds for a pod to become ready again with the image that it had
_PRIORITIES = {"updated": 5, "pending": 6, "held": 6, "refused": 3, "rolledBack": 3, "failed": 3}
_CHANGED = "its file has changed since it was started, and would be tried along: systemctl restart pod@{} takes both"
_BAD = ("refused", "rolledBack", "failed")
_COLOURS = {"updated": "green", "pending": "yellow", "held": "yellow"} | dict.fromkeys(_BAD, "red")
_COLUMNS = (
    Column("POD", lambda r: r["pod"]),
    Column("APP", lambda r: format_text(r["app"])),
    Column("IMAGE", lambda r: format_text(r["image"])),
    Column("DIGEST", lambda r: format_text(r["digest"] and r["digest"][7:19])),
    Column("STATE", lambda r: output.paint(r["state"], _COLOURS.get(r["state"], "grey"))),
    Column("MESSAGE", lambda r: format_text(r["message"])),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="pods; without any, all that run and have systemd.io/auto-update")
    parser.add_argument("-n", "--dry-run", action="store_true", help="tell what would be updated, and change nothing")
    parser.add_argument("--timeout", default="5min", metavar="TIME", help="until a pod must be ready with its new image; default: 5min")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")
    output.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """A record for each image that could have moved; 1 if any was refused, rolled back or failed."""
    from rktd_units.cli.gc import parse_time

    open_store()
    timeout, settings, host = parse_time(arguments.timeout), load_settings(LAYOUT.config), Host()
    records: list[Record] = []
    with lock(LAYOUT, "update"), shown_progress(quiet=arguments.quiet) as progress:
        for name in host.require(arguments.names) if arguments.names else sorted(host.entries):
            update = _find_update(host, name, named=bool(arguments.names))
            if update:
                records += _Run(update, settings, timeout, progress).run(dry_run=arguments.dry_run)
    output.print_records(arguments, records, _COLUMNS, "image")
    return EX_FAILED if any(record["state"] in _BAD for record in records) else 0


class _App(NamedTuple):
    name: str
    reference: str  # canonical
    digest: str  # of the manifest that runs; "" while it does not


class _Update(NamedTuple):
    """A pod that runs: `apps` are those whose images can move."""

    host: Host
    pod: str
    source: str  # registry or local
    apps: tuple[_App, ...]


def _find_update(host: Host, name: str, *, named: bool) -> _Update | None:
    """None for a pod that does not take part; who is named must. Raises UsageError."""
    try:
        model = load_model(LAYOUT, host.entries[name]) if name in host.entries else None
    except RktdError:
        if named:
            raise
        return None
    source = model.systemd.auto_update if model else ""
    if not source:
        if named:
            raise UsageError(f"pod {name} has no systemd.io/auto-update", hint="registry or local")
        return None
    state, note = host.state(name)[0], load_note(LAYOUT, name)
    is_left = note is not None and note.phase != HELD and state in ("failed", "activating")  # by a run that was killed
    if state != "active" and not is_left:
        if named:
            raise UsageError(f"pod {name} does not run", hint="its next start takes what its tags mean then")
        return None
    store, running = Store(LAYOUT), {}
    with suppress(FileNotFoundError):
        running = {str(app["name"]): app for app in load_run(LAYOUT, name)["apps"]}
    apps = []
    for container in model.containers if model else ():
        reference = resolve_reference(container.image, store)
        app = running.get(container.name) or ({"image": str(reference), "digest": ""} if is_left else None)
        moves = not reference.digest and (source == "local" or reference.kind == REGISTRY) and container.pull_policy != NEVER
        if app is not None and moves and app["image"] == str(reference):
            apps.append(_App(container.name, str(reference), str(app["digest"])))
    return _Update(host, name, source, tuple(apps))


class _Run:
    """The update of one pod."""

    def __init__(self, update: _Update, settings: Settings, timeout: float, progress: Progress) -> None:
        self._update = update
        self._pod = update.pod
        self._settings = settings
        self._timeout = timeout
        self._progress = progress
        self._store = Store(LAYOUT)
        self._records: list[Record] = []

    def run(self, *, dry_run: bool) -> list[Record]:
        note = load_note(LAYOUT, self._pod)
        if note and note.phase != HELD:
            if dry_run or not self._end_killed(note):
                return self._records
            note = load_note(LAYOUT, self._pod)
        moved = self._find_moved(note)
        is_changed = self._update.host.describe([self._pod], ask=False)[0]["changed"]
        if dry_run or is_changed:
            for app, new in moved:
                self._say(app, "pending", new, _CHANGED.format(self._pod) if is_changed else None)
        elif moved:
            self._try(moved)
        return self._records

    def _say(self, app: _App, state: str, digest: str | None, message: str | None = None) -> None:
        """Into the records, and into the journal what is more than nothing."""
        record: dict[str, Any] = {"pod": self._pod, "app": app.name, "image": app.reference, "running": app.digest, "digest": digest}
        self._records.append({**record, "state": state, "message": message})
        if state in _PRIORITIES:
            text = f"pod {self._pod}: image {app.reference} of app {app.name}: {_WORDS[state]}"
            text += f", {digest}" if digest else ""
            more = {"MESSAGE_ID": EVENTS["update-rolled-back"], "APP": app.name} if state == "rolledBack" else {}
            self._tell(text + (f": {message}" if message else ""), _PRIORITIES[state], more)

    def _tell(self, text: str, priority: int, more: dict[str, str]) -> None:
        """With the pid of a process of the pod's unit journalctl shows it there, too (systemd.journal-fields(7), OBJECT_PID=)."""
        pid = self._update.host.properties(pod_unit(self._pod), "Service", ("MainPID",))[0]
        fields = {"MESSAGE": clean_text(text), "PRIORITY": str(priority), "SYSLOG_IDENTIFIER": "podctl", "POD": self._pod, **more}
        if pid:
            fields["OBJECT_PID"] = str(pid)
        Journal().send([(key, value.encode()) for key, value in fields.items()])

    def _find_moved(self, note: Note | None) -> list[tuple[_App, str]]:
        """Those whose reference stands for another manifest now, with that. What was rolled back waits until the tag has moved on."""
        held = {image.reference: image.new for image in note.images} if note and note.phase == HELD else {}
        found: dict[str, str | RktdError] = {}
        moved = []
        for app in self._update.apps:
            if app.reference not in found:
                try:
                    found[app.reference] = self._find_digest(app)
                except RktdError as error:
                    found[app.reference] = error
            new = found[app.reference]
            if isinstance(new, RktdError):
                self._say(app, "failed", None, str(new))
            elif new == app.digest:
                self._say(app, "unchanged", new)
            elif held.get(app.reference) == new:
                self._say(app, "held", new, "it was rolled back, and is tried again when the tag has moved")
            else:
                moved.append((app, new))
        return moved

    def _find_digest(self, app: _App) -> str:
        if self._update.source == "registry":
            return find_remote_digest(resolve_reference(app.reference, self._store), self._settings, self._store)
        record = self._store.find_image(app.reference)
        return record.manifest if record else app.digest

    def _try(self, moved: list[tuple[_App, str]]) -> None:
        before = {app.reference: note_image(self._store, app.reference, app.digest, new) for app, new in moved}
        kept = tuple(held for held in before.values() if held)
        if len(kept) < len(before):
            for app, new in moved:
                self._say(app, "failed", new, "the image that runs is in the store no more: there would be no way back")
            return
        save_note(LAYOUT, self._pod, Note(TRYING, kept))
        policy = ALWAYS if self._update.source == "registry" else IF_NOT_PRESENT
        try:
            images = ready_images([ImageRequest(held.reference, policy) for held in kept], self._settings, LAYOUT, self._progress)
        except RktdError as error:
            self._give_up(kept)
            for app, new in moved:
                self._say(app, "refused", new, str(error))
            return
        fetched = {image.reference: image.manifest_digest for image in images}
        kept = tuple(held._replace(new=fetched[held.reference]) for held in kept)
        if all(held.new == held.old for held in kept):  # the tag has moved back meanwhile
            self._give_up(kept)
            for app, _ in moved:
                self._say(app, "unchanged", app.digest)
            return
        save_note(LAYOUT, self._pod, Note(TRYING, kept))
        self._restart(kept, [app for app, _ in moved])

    def _give_up(self, kept: tuple[Held, ...]) -> None:
        """Nothing was restarted: the tags mean here what they meant."""
        for held in kept:
            restore_image(self._store, held)
        remove_note(LAYOUT, self._pod)

    def _restart(self, kept: tuple[Held, ...], apps: list[_App]) -> None:
        fault = self._start_anew(self._timeout)
        if fault:
            self._roll_back(kept, apps, fault)
            return
        remove_note(LAYOUT, self._pod)
        new = {held.reference: held.new for held in kept}
        for app in apps:
            self._say(app, "updated", new[app.reference])

    def _roll_back(self, kept: tuple[Held, ...], apps: list[_App], fault: str) -> None:
        save_note(LAYOUT, self._pod, Note(REVERTING, kept))
        restored = [restore_image(self._store, held) for held in kept]
        again = self._start_anew() if all(restored) else "the image that ran is in the store no more"
        save_note(LAYOUT, self._pod, Note(HELD, kept))
        new = {held.reference: held.new for held in kept}
        for app in apps:
            if again:
                self._say(app, "failed", new[app.reference], f"{fault}; and it cannot be rolled back: {again}")
            else:
                self._say(app, "rolledBack", new[app.reference], fault)

    def _end_killed(self, note: Note) -> bool:
        """Ends what an earlier run began. False if that is all that is to be done with the pod now."""
        running = {app.reference: app.digest for app in self._update.apps}
        kept = tuple(held for held in note.images if held.reference in running)
        apps = [app for app in self._update.apps if any(app.reference == held.reference for held in kept)]
        if note.phase == TRYING and all(running[held.reference] == held.old for held in kept):
            self._give_up(kept)  # it never got as far as the restart
            return True
        if fault := "an earlier run was interrupted" if note.phase == REVERTING else self._watch(self._timeout):
            self._roll_back(
                kept, [app._replace(digest=held.old) for app in apps for held in kept if held.reference == app.reference], fault
            )
            return False
        remove_note(LAYOUT, self._pod)
        return True

    def _start_anew(self, timeout: float = _PATIENCE) -> str:
        """Restarts the pod, and gives what is wrong with it then."""
        from rktd_units.bus import connected_bus

        async def restart() -> dict[str, str]:
            async with connected_bus() as bus:
                return await asyncio.wait_for(bus.run_jobs("RestartUnit", [pod_unit(self._pod)]), timeout)

        try:
            result = asyncio.run(restart())[pod_unit(self._pod)]
        except TimeoutError:
            return f"it did not become ready within {timeout:g} s"
        if result != "done":
            return read_error(LAYOUT, self._pod) or f"it did not start: {result}"
        return self._watch()

    def _watch(self, patience: float = 0) -> str:
        """Why a pod that has become ready does not stay so, if it does not. It may take so many seconds until it is ready."""
        begin = time.monotonic()
        end = begin + _SETTLE
        while True:
            (record,) = Host().describe([self._pod])
            if record["state"] == "activating" and time.monotonic() < begin + patience:
                end = time.monotonic() + _SETTLE
                time.sleep(_STEP)
                continue
            if record["state"] == "inactive" and record["result"] == "success":
                return ""  # it has done what it was to do
            if record["state"] != "active":
                return f"it is {record['state']} ({record['subState']}), exit code {format_text(record['exitStatus'])}"
            is_settled = time.monotonic() > end
            for app in record["apps"]:
                # How it ended is written down beside its restart.
                if (app["restarts"] or app["state"] == "failed") and (is_settled or app["exitCode"] is not None):
                    return f"its app {app['name']} has ended with exit code {format_text(app['exitCode'])}"
            if is_settled:
                return ""
            time.sleep(_STEP)


_WORDS = {
    "updated": "updated",
    "pending": "there is a newer one",
    "held": "not tried again",
    "refused": "the newer one is refused",
    "rolledBack": "rolled back",
    "failed": "failed",
}
