# SPDX-License-Identifier: Apache-2.0
"""Stage1 of a pod that runs as a Xen guest: the main process of pod@NAME.service, from the domain's creation to its destruction.

It has xl create the domain, reads its console into the journal (stage1/console.py), registers it with machined, says READY=1 when all apps
run, has the guest shut down at a stop, and exits with what the pod came to (docs/lifecycle.md). Whatever kills it, `stage0 release` ends
the domain. That is kept by Xen when it has ended, so that nothing of its console is lost; it is destroyed here.
"""

import asyncio
import json
import os
import signal
import socket
import stat
import sys
import time
from contextlib import ExitStack, suppress
from typing import Any, NamedTuple

from rktd_units import bus
from rktd_units.errors import CommandError, RktdError, StateError, TemporaryError
from rktd_units.journal import Journal
from rktd_units.network.netlink import Route
from rktd_units.paths import Layout
from rktd_units.runfiles import describe_readiness, lock, write_text
from rktd_units.stage1 import console, frames, loops
from rktd_units.stage1.exechost import EXEC_SOCKET, ExecHost
from rktd_units.stage1.ramdisk import joined
from rktd_units.xenring import Ring, RingError, map_ring
from rktd_units.xenstore import Xenstore

XL = "/usr/sbin/xl"
SHARE = "/usr/lib/rktd/share"
VERSION = 2
_CREATE_TIMEOUT = 300.0  # seconds
_CREATE_TRIES = 3
_TIMED_OUT = ("because of timeout", "rc -9")  # ERROR_TIMEDOUT of libxl, whose patience is 10 s for a device and 40 s for a script
_XL_TIMEOUT = 120.0
_LIST_TIMEOUT = 30.0
_TTY_TRIES = 200  # of 50 ms
_READ_SIZE = 64 * 1024
_QUIET = 1.0  # seconds without a byte after which the console of an ended domain is empty
_SHARE_TIMEOUT = 10.0
_RING_TRIES = 300  # of 100 ms
_STOP_EXTRA = 20  # seconds beyond the apps' grace period after which the domain is destroyed: less than XEN_STOP_MARGIN_SECONDS
_LOOK_AGAIN = 5.0  # seconds, where xl has not told how the domain is
_NOTE_DELAY = 0.1
_DISKS = "/local/domain/0/backend/vbd"
_JOURNAL_PAUSE = 0.01  # seconds, while the journal takes nothing
_LAST_WORDS = 20.0  # seconds between a guest's exit status and its end
_NOISE_KEPT = 40  # lines of the kernel's, in which a panic is looked for
_PANIC = "Kernel panic"
_MACHINED = "org.freedesktop.machine1"
_SIGRTMIN_POWEROFF = signal.SIGRTMIN + 4  # machinectl poweroff


class Orders(NamedTuple):
    """domain.json, which stage0 wrote. `ramdisk` is where `base` and `archive`, the pod's own, are one file while xl reads it."""

    domain: str
    machine_id: str
    ramdisk: str
    base: str
    archive: str
    grace: int
    apps: tuple[str, ...]
    exports: dict[str, list[str]]
    interface: dict[str, str | int] | None


class Outcome(NamedTuple):
    """What the pod came to: the exit status, and why if that is not the apps' own."""

    status: int
    reason: str = ""


class Supervisor:
    """One domain."""

    def __init__(self, pod: str, layout: Layout) -> None:
        self._pod = pod
        self._layout = layout
        self._directory = layout.pod(pod)
        self._orders = load_orders(f"{self._directory}/domain.json")
        self._journal = Journal()
        self._store = Xenstore()
        self._reader = console.Reader(self._orders.apps)
        self._changed = asyncio.Event()  # a domain has ended somewhere
        self._stopping = asyncio.Event()
        self._over = asyncio.Event()  # the guest's last word
        self._pending: list[list[tuple[str, bytes]]] = []  # what the journal has not taken yet
        self._heard = time.monotonic()
        self._noise: list[str] = []
        self._is_ready = False
        self._readiness: dict[str, str] = {}
        self._readiness_told = describe_readiness({})
        self._exit: int | None = None
        self._failure = ""
        self._is_deaf = False  # the console has ended
        self._number = -1  # the domain's, once it has one
        self._tty = -1
        self._share: Any = None  # serves the volumes
        self._exec = ExecHost(f"{self._directory}/{EXEC_SOCKET}", self._open_ring)
        self._notes: dict[str, str] = {}  # files of the pod's directory that are written soon
        self._down: set[str] = set()  # apps that have ended
        self._restarts: dict[str, int] = {}

    async def run(self) -> Outcome:
        """From nothing to nothing."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, _SIGRTMIN_POWEROFF):
            loop.add_signal_handler(number, self._stopping.set)
        await self._store.connect()
        self._write_mark()
        try:
            await self._remove_left()
            with ExitStack() as alone:  # libxl gives up on devices that take too long, as they do when many come at once
                if not await self._await_turn(alone):
                    return Outcome(0)
                await self._create()
            await self._join()
            outcome = await self._attend()
            self._write_notes()
            return outcome
        finally:
            self._exec.close()
            await self._clear()

    def _write_mark(self) -> None:
        """For who finds the domain without us (guests.remove_guest): its name and, once it has one, its number."""
        write_text(self._layout.domain(self._pod), f"{self._orders.domain}\n" + (f"{self._number}\n" if self._number >= 0 else ""))

    async def _clear(self) -> None:
        """The mark goes last: as long as it is there, `stage0 release` tries again."""
        is_destroyed, is_silent = await self._destroy(), await self._end_volumes()
        if is_destroyed and is_silent:
            os.unlink(self._layout.domain(self._pod))

    async def _remove_left(self) -> None:
        number = await self._store.find_domain(self._orders.domain)
        if number is not None:
            self._say("a domain that an earlier run has left is destroyed", 4)
            await self._xl("destroy", self._orders.domain)
            await self._remove_nodes(number)

    async def _await_turn(self, alone: ExitStack) -> bool:
        """Holds the lock of those who create domains. False when the pod is stopped before. Raises OSError."""
        notify("STATUS=Creating the domain")
        loop = asyncio.get_running_loop()
        turn = loop.run_in_executor(None, lambda: alone.enter_context(lock(self._layout, "xl")))
        stop = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait((turn, stop), return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if self._stopping.is_set():
            return False
        turn.result()
        return True

    async def _create(self) -> None:
        """Ours is the turn: no other domain is created meanwhile, and no other ramdisk is in memory."""
        orders = self._orders
        with joined(orders.ramdisk, (orders.base, orders.archive)):
            began, self._began = time.monotonic(), time.time_ns() // 1_000_000
            for left in reversed(range(_CREATE_TRIES)):
                await self._detach_loops()
                try:
                    await self._xl("create", "-e", "-q", f"{self._directory}/domain.cfg", timeout=_CREATE_TIMEOUT)
                    break
                except CommandError as error:
                    if not left or not any(word in error.stderr for word in _TIMED_OUT):
                        raise
                    self._say("the domain's devices have not come in time: it is created again", 5)
            self._created = time.monotonic() - began
        with suppress(FileNotFoundError):  # it is in the guest's memory now
            os.unlink(orders.archive)

    async def _detach_loops(self) -> None:
        """Those that no domain's disk is behind: a script of xl's that was killed leaves one."""
        found = loops.find_loops((self._layout.disks, self._layout.layers))
        if not found:
            return
        used = set()
        for domain in await self._store.list_names(_DISKS):
            for device in await self._store.list_names(f"{_DISKS}/{domain}"):
                used.add(await self._store.read(f"{_DISKS}/{domain}/{device}/node"))
        for path in found:
            if path not in used:
                loops.detach_loop(path)

    async def _join(self) -> None:
        """All that a running domain has on this host."""
        number = await self._store.find_domain(self._orders.domain)
        if number is None:
            raise StateError(f"xl has created {self._orders.domain}, but xenstore does not have it")
        self._number = number
        self._write_mark()
        self._home = f"/local/domain/{number}"
        self._serve_volumes()
        await self._exec.start()
        self._join_bridge()
        await self._store.watch(["@releaseDomain"], lambda _: self._changed.set())
        await self._open_console()
        await self._register()
        notify(f"STATUS=Domain {number} is starting")

    def _join_bridge(self) -> None:
        """What network.host.make_cable does for a cable."""
        if not self._orders.interface:
            return
        found = self._orders.interface
        name = str(found["name"])
        for path, value in ((f"/sys/class/net/{name}/mtu", str(found["mtu"])), (f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6", "1")):
            with suppress(FileNotFoundError), open(path, "w", encoding="ascii") as file:  # a kernel without IPv6
                file.write(value)
        route = Route()
        try:
            route.enslave(name, str(found["bridge"]), bytes.fromhex(str(found["mac"]).replace(":", "")))
        finally:
            route.close()

    def _serve_volumes(self) -> None:
        """The guest waits for them. The server's output is a pipe on which it never writes: at either's end the other one knows."""
        if not self._orders.exports:
            return
        from rktd_units.proc import start

        self._share = start((SHARE, str(self._number), json.dumps(self._orders.exports)))
        asyncio.get_running_loop().add_reader(self._share.stdout.fileno(), self._lose_volumes)

    def _lose_volumes(self) -> None:
        asyncio.get_running_loop().remove_reader(self._share.stdout.fileno())
        self._failure = self._failure or "the server of the pod's volumes has ended"
        self._over.set()

    async def _open_ring(self) -> Ring:
        """What the guest's agent has granted, once it is up."""
        for _ in range(_RING_TRIES):
            words = (await self._store.read(f"{self._home}/{frames.NODE}") or "").split()
            if len(words) == 2 and all(word.isdigit() and len(word) < 10 for word in words):
                return map_ring(self._number, int(words[0]), int(words[1]))
            await asyncio.sleep(0.1)
        raise RingError("its agent does not run")

    async def _end_volumes(self) -> bool:
        """It ends by itself, or is killed with the unit. What it has in xenstore is removed here: it gave up its connection."""
        if self._share is None:
            return True
        asyncio.get_running_loop().remove_reader(self._share.stdout.fileno())
        self._share.stdout.close()
        end = time.monotonic() + _SHARE_TIMEOUT
        while self._share.poll() is None and time.monotonic() < end:
            await asyncio.sleep(0.05)
        return await self._remove_nodes(self._number)

    async def _remove_nodes(self, number: int) -> bool:
        from rktd_units.share.device import remove_nodes

        try:
            await asyncio.get_running_loop().run_in_executor(None, remove_nodes, number)
        except RktdError as error:
            self._say(f"the device of the pod's volumes stays in xenstore: {error}", 3)
            return False
        return True

    async def _open_console(self) -> None:
        for _ in range(_TTY_TRIES):
            path = await self._store.read(f"{self._home}/console/tty")
            if path:
                break
            await asyncio.sleep(0.05)
        else:
            raise StateError("the domain has no console: does xenconsoled run?")
        self._tty = open_terminal(path)
        asyncio.get_running_loop().add_reader(self._tty, self._read_console)

    async def _register(self) -> None:
        """Machined shows it, and that is all; without machined nothing is missing."""
        identity = bytes.fromhex(self._orders.machine_id)
        body = (self._pod, identity, "rktd", "vm", os.getpid(), "")
        try:
            async with bus.connected_bus() as connection:
                path, interface = "/org/freedesktop/machine1", f"{_MACHINED}.Manager"
                await connection.call(path, interface, "RegisterMachine", "sayssus", body, destination=_MACHINED)
        except RktdError as error:
            self._say(f"systemd-machined does not register the domain: {error}", 4)

    async def _attend(self) -> Outcome:
        """Until the domain has ended."""
        asked = 0.0
        while True:
            waits: list[asyncio.Future[Any]] = [asyncio.ensure_future(self._changed.wait()), asyncio.ensure_future(self._over.wait())]
            if not asked:
                waits.append(asyncio.ensure_future(self._stopping.wait()))
            limit = max(asked + self._orders.grace + _STOP_EXTRA - time.monotonic(), 0) if asked else None
            await asyncio.wait(waits, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
            if self._over.is_set():
                return await self._outcome(bool(asked), "")
            if self._changed.is_set():
                self._changed.clear()
                state = await self._state()
                if state == "" and self._is_deaf and not asked:
                    self._failure = "the domain's console has ended, and with it the journal of its apps: does xenconsoled run?"
                    return await self._outcome(was_asked=False, state=state)
                if state:
                    return await self._outcome(bool(asked), state)
            if self._stopping.is_set() and not asked:
                asked = time.monotonic()
                notify("STOPPING=1\nSTATUS=The guest is shutting down")
                await self._store.write(f"{self._home}/control/shutdown", "poweroff")
            elif asked and time.monotonic() >= asked + self._orders.grace + _STOP_EXTRA:
                return Outcome(1, "the guest does not shut down: its domain is destroyed")

    async def _state(self) -> str | None:
        """ "gone", "crashed", "shutdown", or "" while it lives; None where xl cannot tell, who is asked again."""
        try:
            if await self._store.find_domain(self._orders.domain) is None:
                return "gone"
            return parse_state(await self._xl("list", self._orders.domain, timeout=_LIST_TIMEOUT))
        except (CommandError, TemporaryError):
            asyncio.get_running_loop().call_later(_LOOK_AGAIN, self._changed.set)
            return None

    async def _outcome(self, was_asked: bool, state: str) -> Outcome:
        await self._drain()
        if self._failure:
            return Outcome(1, self._failure)
        if self._exit is not None:
            return Outcome(0 if was_asked else self._exit)
        panic = next((line for line in self._noise if _PANIC in line), "")
        if panic or state == "crashed":
            return Outcome(1, f"the guest's kernel has crashed: {panic[panic.find(_PANIC) :] or 'it said nothing'}")
        if was_asked:
            return Outcome(0)
        return Outcome(1, "the domain was destroyed" if state == "gone" else "the guest has ended without a word of how its apps did")

    async def _drain(self) -> None:
        """All that the console has, and the journal's turn."""
        end = time.monotonic() + _LAST_WORDS
        self._heard = time.monotonic()
        while time.monotonic() < end and not self._over.is_set() and (self._pending or time.monotonic() - self._heard < _QUIET):
            await asyncio.sleep(0.05)
        if self._pending and not self._over.is_set():
            await self._skim()
        for record in self._reader.flush():
            self._take(record)
        while self._pending and time.monotonic() < end:
            await asyncio.sleep(0.01)

    async def _skim(self) -> None:
        """What the console has left when the journal is too slow: a panic's text and how the apps ended; lines of apps are counted."""
        lost = 0
        end = time.monotonic() + _LAST_WORDS
        self._heard = time.monotonic()
        while time.monotonic() < end and not self._over.is_set() and time.monotonic() - self._heard < _QUIET:
            try:
                data = os.read(self._tty, _READ_SIZE)
            except BlockingIOError:
                await asyncio.sleep(0.02)
                continue
            except OSError:
                break
            if not data:
                break
            self._heard = time.monotonic()
            for record in self._reader.feed(data):
                if isinstance(record, console.Line):
                    lost += 1
                else:
                    self._take(record)
        if lost:
            self._say(f"{lost} lines of the guest are lost: the journal is too slow", 4)

    def _read_console(self) -> None:
        try:
            data = os.read(self._tty, _READ_SIZE)
        except BlockingIOError:
            return
        except OSError:  # the other end has gone
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._tty)
            self._is_deaf = True
            self._changed.set()
            return
        self._heard = time.monotonic()
        for record in self._reader.feed(data):
            self._take(record)

    def _take(self, record: console.Record) -> None:
        match record:
            case console.Line():
                self._log(record)
            case console.Noise(text):
                self._noise = [*self._noise, text][-_NOISE_KEPT:] if not any(_PANIC in line for line in self._noise) else self._noise
                self._send([("MESSAGE", text.encode()), ("PRIORITY", b"4"), ("SYSLOG_IDENTIFIER", console.KERNEL.encode())])
            case console.Lost(lines):
                self._say(f"{lines} lines of the guest are lost", 4)
            case console.Ready() if self._is_ready:
                pass
            case console.Ready(init, systemd, ready):
                self._is_ready = True
                times = {"began": self._began, "create": round(self._created * 1000), "init": init, "systemd": systemd, "ready": ready}
                write_text(f"{self._directory}/times", json.dumps(times) + "\n")
                self._write_states()
                self._write_notes()
                notify(f"READY=1\nSTATUS=All apps run in domain {self._number}")
            case console.Failed(reason):
                self._failure = f"cannot set up pod {self._pod}: {reason}"
                self._over.set()
            case console.Ended(app, words):
                self._note(f"status/{app}", " ".join(words) + "\n")
                if app in self._down:  # it has run again meanwhile, for so short a time that the guest has not seen it
                    self._restarts[app] = self._restarts.get(app, 0) + 1
                self._down.add(app)
                self._write_states()
            case console.Up(app):
                self._restarts[app] = self._restarts.get(app, 0) + (app in self._down)
                self._down.discard(app)
                self._write_states()
            case console.Probed(app, state):
                self._note(f"status/{app}.ready", state + "\n")
            case console.Exit(status):
                self._exit = status
                self._over.set()

    def _write_states(self) -> None:
        """For podctl, which asks no guest."""
        states = {app: {"running": app not in self._down, "restarts": self._restarts.get(app, 0)} for app in self._orders.apps}
        self._note("states", json.dumps(states) + "\n")

    def _note(self, name: str, text: str) -> None:
        """Once for however much a guest tells meanwhile."""
        if not self._notes:
            asyncio.get_running_loop().call_later(_NOTE_DELAY, self._write_notes)
        self._notes[name] = text

    def _write_notes(self) -> None:
        notes, self._notes = self._notes, {}
        for name, text in notes.items():
            write_text(f"{self._directory}/{name}", text)
        if found := {name[7:-6]: text.strip() for name, text in notes.items() if name.endswith(".ready")}:  # status/APP.ready
            self._readiness |= found
            if self._is_ready and (told := describe_readiness(self._readiness)) != self._readiness_told:
                self._readiness_told = told
                notify(f"STATUS={told}")

    def _log(self, line: console.Line) -> None:
        fields = [("MESSAGE", line.message), ("PRIORITY", str(line.priority).encode()), ("SYSLOG_IDENTIFIER", line.app.encode())]
        if line.pid:
            fields.append(("RKTD_GUEST_PID", str(line.pid).encode()))
        fields.append(("RKTD_GUEST_TIME_USEC", str(line.time).encode()))
        self._send(fields)

    def _say(self, text: str, priority: int) -> None:
        self._send([("MESSAGE", text.encode()), ("PRIORITY", str(priority).encode()), ("SYSLOG_IDENTIFIER", b"pod")])

    def _send(self, fields: list[tuple[str, bytes]]) -> None:
        """While the journal takes no more, the console is not read: Xen's console daemon keeps some, and the rest is told lost."""
        if self._pending or not self._journal.send(fields):
            if not self._pending:
                loop = asyncio.get_running_loop()
                if self._tty >= 0:
                    loop.remove_reader(self._tty)
                loop.call_later(_JOURNAL_PAUSE, self._send_pending)
            self._pending.append(fields)

    def _send_pending(self) -> None:
        """By time: a socket of datagrams is writable for poll(2) even while its receiver's queue is full of others' ones."""
        while self._pending and self._journal.send(self._pending[0]):
            self._pending.pop(0)
        loop = asyncio.get_running_loop()
        if self._pending:
            loop.call_later(_JOURNAL_PAUSE, self._send_pending)
        elif self._tty >= 0 and not self._is_deaf:
            loop.add_reader(self._tty, self._read_console)

    async def _destroy(self) -> bool:
        try:
            if await self._store.find_domain(self._orders.domain) is not None:
                await self._xl("destroy", self._orders.domain)
                if await self._store.find_domain(self._orders.domain) is not None:
                    raise StateError(f"xenstore still has {self._orders.domain}")
        except RktdError as error:
            self._say(f"the domain is not destroyed: {error}", 3)
            return False
        return True

    async def _xl(self, *arguments: str, timeout: float = _XL_TIMEOUT) -> str:
        """Its output. Raises CommandError with what it said."""
        from rktd_units.proc import run

        loop = asyncio.get_running_loop()
        done = await loop.run_in_executor(None, lambda: run((XL, *arguments), timeout=timeout))
        return done.stdout.decode("utf-8", "replace")


def load_orders(path: str) -> Orders:
    with open(path, encoding="utf-8") as file:
        found = json.load(file)
    if found.get("version") != VERSION:
        raise StateError(f"{path} is not of version {VERSION}")
    domain, machine_id, ramdisk, base, archive = (found[key] for key in ("domain", "machineId", "ramdisk", "base", "archive"))
    grace, apps, exports, interface = (found[key] for key in ("graceSeconds", "apps", "exports", "interface"))
    return Orders(domain, machine_id, ramdisk, base, archive, grace, tuple(apps), exports, interface)


def open_terminal(path: str) -> int:
    """What xenstore names as a domain's console. Raises StateError for what is no terminal of xenconsoled's, OSError."""
    prefix, _, number = path.rpartition("/")
    if prefix != "/dev/pts" or not number.isdecimal() or not number.isascii():
        raise StateError(f"the domain's console is no terminal: {path!r}")
    descriptor = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    if not stat.S_ISCHR(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise StateError(f"the domain's console is no terminal: {path}")
    return descriptor


def parse_state(output: str) -> str:
    """Of `xl list NAME`: the letters of xl(1) in the last column but one."""
    words = output.strip().split("\n")[-1].split()
    letters = words[-2] if len(words) >= 6 else ""
    return "crashed" if "c" in letters else "shutdown" if "s" in letters or "d" in letters else ""


def notify(text: str) -> None:
    """sd_notify(3)."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if path:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel, suppress(OSError):
            channel.sendto(text.encode(), "\0" + path[1:] if path.startswith("@") else path)


def main(argv: list[str]) -> int:
    """`supervisor NAME`."""
    try:  # not asyncio.run(), which at its end waits for threads: one may be waiting for a xenstored that is no more
        outcome = asyncio.new_event_loop().run_until_complete(_run(argv[1]))
    except RktdError as error:
        outcome = Outcome(1, f"cannot run pod {argv[1]}: {error}")
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        outcome = Outcome(1, f"cannot run pod {argv[1]}: {place}{error.strerror or error}")
    if outcome.reason:
        sys.stderr.write(f"<3>{outcome.reason}\n")
        notify(f"STATUS={outcome.reason}")
    sys.stderr.flush()
    os._exit(outcome.status)


async def _run(pod: str) -> Outcome:
    return await Supervisor(pod, Layout()).run()
