# SPDX-License-Identifier: Apache-2.0
"""In a Xen guest: runs the commands that `podctl exec` on the host asks for, in the apps, by the same code as on a host (rktd_units.enter).

It lives beside PID 1 in the guest's first root, and talks to the domain's supervisor over memory that the two share (docs/exec.md): no
network, no device of an app. Where the kernel lacks that, it ends, and nothing else is missing.
"""

import fcntl
import json
import os
import select
import signal
import struct
import termios
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, NoReturn

from rktd_units import copying, enter, mounts, xenring
from rktd_units.stage1 import apart, frames
from rktd_units.stage1.guestlog import cgroups

SESSIONS_MAX = 32
_ORDER_MAX = 1 << 20
_ORDER = 4  # the ring's: 16 pages, half of them each way
_PATIENCE = 5.0  # seconds that an app may be between two runs
_STEP = 0.05
_XENBUS = "/dev/xen/xenbus"
_XS_WRITE = 11  # public/io/xs_wire.h
_SIGNALS = tuple(int(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2))
_DEVPTS = (("mode", "0600"), ("ptmxmode", "0600"))


class Session:
    """One command. Descriptors are -1 once they are closed."""

    def __init__(self, pid: int, into: int, out: int, err: int) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.into, self.out, self.err = into, out, err
        self.waiting = b""  # input that the command has not taken yet
        self.ended = False  # no more input comes
        self.allowance = frames.WINDOW
        self.status: int | None = None
        for descriptor in {into, out, err} - {-1}:
            os.set_blocking(descriptor, False)

    @property
    def is_terminal(self) -> bool:
        return self.into == self.out


class Agent:
    """The loop."""

    def __init__(self, ring: xenring.Ring) -> None:
        self._ring = ring
        self._splitter = frames.Splitter()
        self._sessions: dict[int, Session] = {}
        self._orders: dict[int, bytes] = {}
        self._pending = bytearray()

    def run(self) -> None:
        """Raises RingError, FrameError when the host speaks nonsense."""
        while True:
            poller = select.poll()
            for descriptor, events in self._interests():
                poller.register(descriptor, events)
            ready = dict(poller.poll())
            if self._ring.fileno() in ready:
                self._ring.clear()
            self._receive()
            for number, session in list(self._sessions.items()):
                self._serve(number, session, ready)
            self._flush()

    def _interests(self) -> list[tuple[int, int]]:
        found = [(self._ring.fileno(), select.POLLIN)]
        for session in self._sessions.values():
            events: dict[int, int] = {}
            if session.allowance and len(self._pending) < frames.WINDOW:
                events |= {descriptor: select.POLLIN for descriptor in (session.out, session.err) if descriptor >= 0}
            if session.into >= 0 and session.waiting:
                events[session.into] = events.get(session.into, 0) | select.POLLOUT
            if session.status is None:
                events[session.pidfd] = select.POLLIN
            found += events.items()
        return found

    def _receive(self) -> None:
        if count := self._ring.available():
            data = self._ring.read(count)
            self._ring.call()
            for number, kind, part in self._splitter.feed(data):
                self._handle(number, kind, part)

    def _flush(self) -> None:
        count = min(self._ring.space(), len(self._pending))
        if count:
            self._ring.write(bytes(self._pending[:count]))
            del self._pending[:count]
            self._ring.call()

    def _handle(self, number: int, kind: int, data: bytes) -> None:
        if kind == frames.OPEN:
            self._collect(number, data)
            return
        session = self._sessions.get(number)
        if session is None:
            if kind == frames.HANGUP:
                self._orders.pop(number, None)
            return
        if kind == frames.INPUT:
            session.waiting += data
        elif kind == frames.END:
            session.ended = True
        elif kind == frames.GRANT:
            session.allowance += frames.granted(data)
        elif kind == frames.SIGNAL and len(data) == 1 and data[0] in _SIGNALS:
            _kill(session, data[0])
        elif kind == frames.SIZE and len(data) == 8 and session.is_terminal and session.out >= 0:
            with suppress(OSError):
                fcntl.ioctl(session.out, termios.TIOCSWINSZ, data)
        elif kind == frames.HANGUP:
            _kill(session, signal.SIGKILL)
            session.allowance = 1 << 40  # nobody listens: it goes nowhere

    def _collect(self, number: int, data: bytes) -> None:
        """A request comes in parts. One that cannot be carried out is nobody else's end."""
        if number in self._sessions:
            return
        if data:
            self._orders[number] = (self._orders.get(number, b"") + data)[: _ORDER_MAX + 1]
            return
        text = self._orders.pop(number, b"")
        if len(self._sessions) >= SESSIONS_MAX:
            self._refuse(number, "too many commands run in this pod")
            return
        try:
            if len(text) > _ORDER_MAX:
                raise ValueError(f"it is longer than {_ORDER_MAX} bytes")
            self._sessions[number] = start(json.loads(text))
        except OSError as error:
            self._refuse(number, f"the guest cannot start a command: {error.strerror}")
        except Exception as error:  # whatever a request that is none leads to
            self._refuse(number, f"the guest does not understand the request: {error}")

    def _refuse(self, number: int, reason: str) -> None:
        self._send(number, frames.ERROR, f"podctl: {reason}\n".encode("utf-8", "replace")[: frames.DATA_MAX])
        self._send(number, frames.EXIT, bytes((enter.UNAVAILABLE,)))

    def _send(self, number: int, kind: int, data: bytes) -> None:
        self._pending += frames.frame(number, kind, data)

    def _serve(self, number: int, session: Session, ready: dict[int, int]) -> None:
        self._feed(number, session)
        if session.pidfd in ready and session.status is None:
            _, status = os.waitpid(session.pid, 0)
            session.status = os.waitstatus_to_exitcode(status)
            os.close(session.pidfd)
        for name, kind in (("out", frames.OUTPUT), ("err", frames.ERROR)):
            if getattr(session, name) in ready:
                self._copy(number, session, name, kind)
        if session.status is not None and session.out < 0 and session.err < 0:
            if session.into >= 0:
                os.close(session.into)
            code = session.status if session.status >= 0 else 128 - session.status
            self._send(number, frames.EXIT, bytes((code & 255,)))
            del self._sessions[number]

    def _feed(self, number: int, session: Session) -> None:
        if session.into >= 0 and session.waiting:
            try:
                count = os.write(session.into, session.waiting)
            except BlockingIOError:
                return
            except OSError:  # nobody reads: as with a pipe in a shell, the rest is lost
                count = len(session.waiting)
            session.waiting = session.waiting[count:]
            self._pending += frames.grant(number, count)
        elif session.into < 0 and session.waiting:
            self._pending += frames.grant(number, len(session.waiting))
            session.waiting = b""
        if session.ended and not session.waiting and session.into >= 0 and not session.is_terminal:
            os.close(session.into)
            session.into = -1

    def _copy(self, number: int, session: Session, name: str, kind: int) -> None:
        descriptor = getattr(session, name)
        if not session.allowance:  # the other stream has taken it
            return
        try:
            data = os.read(descriptor, min(session.allowance, frames.DATA_MAX))
        except BlockingIOError:
            return
        except OSError:  # EIO: nobody has the terminal open any more
            data = b""
        if data:
            session.allowance -= len(data)
            self._send(number, kind, data)
            return
        os.close(descriptor)
        if session.is_terminal:
            session.into = -1
        setattr(session, name, -1)


def _kill(session: Session, number: int) -> None:
    if session.status is None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(session.pidfd, number)


def start(order: dict[str, Any]) -> Session:
    """A child for one request: enter.Order without `pid` and `cgroup`, and `app`, and a terminal's `size` (rows, columns).

    Raises OSError, and whatever a request that is none leads to. Nothing is left then.
    """
    made: list[int] = []
    try:
        if order["terminal"]:
            ours, theirs = made[:] = os.openpty()
            termios.tcsetwinsize(ours, order.pop("size"))  # before the command looks
            pairs = [(theirs, ours)] * 2 + [(theirs, -1)]
        else:
            for _ in range(3):
                made += os.pipe()
            pairs = [(made[0], made[1]), (made[3], made[2]), (made[5], made[4])]
        child = os.fork()
    except BaseException:
        _close_all(made)
        raise
    if child == 0:
        _become(order, [pair[0] for pair in pairs])
    _close_all({pair[0] for pair in pairs})
    try:
        return Session(child, *(pair[1] for pair in pairs))
    except OSError:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        _close_all({pair[1] for pair in pairs} - {-1})
        raise


def _close_all(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _become(order: dict[str, Any], standard: list[int]) -> NoReturn:
    code = enter.REFUSED
    try:
        os.setsid()
        if order["terminal"]:
            fcntl.ioctl(standard[0], termios.TIOCSCTTY, 0)
        for number, descriptor in enumerate([fcntl.fcntl(d, fcntl.F_DUPFD_CLOEXEC, 10) for d in standard]):
            os.dup2(descriptor, number)
        app = order.pop("app")
        pid, cgroup = wait_for_app(app)
        if not pid:
            os.write(2, f"podctl: app {app} does not run\n".encode())
            code = enter.UNAVAILABLE
        elif "copy" in order:
            code = copy(order, pid, cgroup)
        else:
            text = os.memfd_create("order")
            os.write(text, json.dumps({**order, "pid": pid, "leader": 1, "cgroup": cgroup, "id_base": 0, "unfiltered": True}).encode())
            os.lseek(text, 0, os.SEEK_SET)
            code = enter.main(text)
    except OSError as error:
        os.write(2, f"podctl: {error.filename or 'exec'}: {error.strerror}\n".encode())
    finally:
        os._exit(code)


def copy(order: dict[str, Any], pid: int, cgroup: str) -> int:
    """For `podctl cp`: items on standard output, or from standard input; what is wrong goes to standard output as an item."""
    os.closerange(3, 1 << 16)  # of this session the agent's own ends, too, and of others
    try:
        root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        enter.check_process(pid, cgroup, 1)
        if order["copy"] == "out":
            for part in copying.pack_items(copying.read_items(copying.open_source(root, order["path"]), copying.last_name(order["path"]))):
                copying.write_all(1, part)
            return 0
        directory, name = copying.find_place(root, order["path"], order["name"], inside=True)
        user = (order["uid"], order["gid"])
        copying.Writer(directory, name, user, lambda _: None, order["groups"]).write(copying.unpack_items(_read_input))
    except OSError as error:
        copying.write_all(1, copying.pack_fault(error))
        return 1
    return 0


def _read_input(size: int) -> bytes:
    return os.read(0, size)


def wait_for_app(app: str) -> tuple[int, str]:
    """Its main process and its cgroup's directory; 0 if it does not run."""
    end = time.monotonic() + _PATIENCE
    while True:
        for cgroup in cgroups(app):
            pid = find_main(cgroup)
            if pid and not enter.is_executor(pid):
                return pid, cgroup
        if time.monotonic() > end:
            return 0, ""
        time.sleep(_STEP)


def find_main(cgroup: str) -> int:
    """PID 1 of the app's own process name space; without one, the oldest process. Commands that were executed are neither."""
    try:
        with open(f"{cgroup}/cgroup.procs", encoding="ascii") as file:
            pids = [int(line) for line in file]
    except OSError:
        return 0
    oldest = (0, 0)
    for pid in pids:
        try:
            with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
                numbers = next(line for line in file if line.startswith("NSpid:")).split()[1:]
            if len(numbers) == 2 and numbers[1] == "1":
                return pid
            with open(f"/proc/{pid}/stat", "rb") as stat:
                began = int(stat.read().rpartition(b")")[2].split()[19])
        except (OSError, StopIteration):
            continue
        if not oldest[1] or began < oldest[0]:
            oldest = (began, pid)
    return oldest[1]


def write_node(value: str) -> None:
    """To xenstore, by the kernel's own connection."""
    body = frames.NODE.encode() + b"\0" + value.encode()
    bus = os.open(_XENBUS, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.write(bus, struct.pack("<IIII", _XS_WRITE, 0, 0, len(body)) + body)
        kind, _, _, length = struct.unpack("<IIII", os.read(bus, 16))
        answer = os.read(bus, length)
        if kind != _XS_WRITE:
            raise OSError(5, answer.rstrip(b"\0").decode("ascii", "replace"), frames.NODE)
    finally:
        os.close(bus)


def main() -> NoReturn:
    """Forked by stage1/guest.py. Does not return."""
    try:
        apart.become("rktd_units.stage1.guestexec", "serve()")
    except OSError as error:
        _tell(error)
    finally:
        os._exit(1)


def serve() -> NoReturn:
    """The agent. Does not return."""
    try:
        os.makedirs("/dev/pts", exist_ok=True)
        terminals = mounts.new_mount("devpts", _DEVPTS, mounts.ATTR_NOSUID | mounts.ATTR_NOEXEC)
        mounts.attach(terminals, "/dev/pts")
        os.close(terminals)
        ring, reference, port = xenring.grant_ring(0, _ORDER)
        write_node(f"{reference} {port}")
        Agent(ring).run()
    except (OSError, xenring.RingError, frames.FrameError) as error:
        _tell(error)
    finally:
        os._exit(1)


def _tell(error: Exception) -> None:
    os.write(2, f"podctl exec does not work in this guest: {error}\n".encode())
