# SPDX-License-Identifier: Apache-2.0
"""In a Xen guest: takes what the apps write, kernel messages and what PID 1 notifies, and writes them to the console as JSON lines.

It is the pod's journald: the apps' streams end here, each line with the pid that wrote it. Nothing is kept: while the console is full, so
are the streams, and the apps wait. Its last act, when all else has ended, is to tell how the apps ended and the pod's exit status; then all
lines are out. The other end is stage1/console.py, which believes nothing.
"""

import _socket
import errno
import fcntl
import os
import select
import signal
import sys
import time
from _json import encode_basestring_ascii as quote
from contextlib import suppress
from typing import NoReturn

from rktd_units.tasks import watch_directory

CONSOLE = "/dev/hvc0"
LINE_MAX = 48 * 1024  # of journald, LineMax=: a longer one is cut there
_KERNEL_LEVEL = 4  # warnings
_PRINTED_LEVEL = 3  # what the kernel itself has on the console until we are there: its argument is loglevel=4 (stage1/xen.py)
_READ_SIZE = 64 * 1024
_CREDENTIALS = 12  # struct ucred: pid, uid, gid
_STATUS_MAX = 256
_TCGETS, _TCSETS, _TCSBRK = 0x5401, 0x5402, 0x5409  # asm-generic/ioctls.h
_CS8_CREAD = 0x30 | 0x80
_PRINTK = "/proc/sys/kernel/printk"
KERNEL_LOG = "/dev/kmsg"
CGROUPS = "/proc/1/root/sys/fs/cgroup/system.slice"  # the first root has none
_LOOK_FIRST, _LOOK_LAST = 1.0, 60.0  # seconds between two looks whether an app that has ended has started again; doubles


class Channel:
    """One stream of an app, and the begin of a line that has no end yet."""

    def __init__(self, socket: _socket.socket, app: str, priority: int) -> None:
        self.socket = socket
        self.app = app
        self.priority = priority
        self.pid = 0
        self.rest = b""


class Console:
    """Where the lines go. A number in each shows the host whether one is missing."""

    def __init__(self) -> None:
        self._fd = os.open(CONSOLE, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        attributes = bytearray(fcntl.ioctl(self._fd, _TCGETS, bytes(36)))
        attributes[:16] = b"".join(flags.to_bytes(4, "little") for flags in (0, 0, _CS8_CREAD | 0xF, 0))  # raw, B38400
        fcntl.ioctl(self._fd, _TCSETS, bytes(attributes))
        self._number = 0
        self._write(b"\n")  # the kernel's own may be in the middle of a line

    def tell(self, **fields: str | int) -> None:
        self._number += 1
        text = "".join(f',"{key}":{value if isinstance(value, int) else quote(value)}' for key, value in fields.items())
        self._write(f'{{"n":{self._number}{text}}}\n'.encode("ascii"))

    def flush(self) -> None:
        """Waits until all is with the host's end."""
        fcntl.ioctl(self._fd, _TCSBRK, 1)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except OSError as error:
                if error.errno != errno.EAGAIN:
                    raise
                time.sleep(0.001)


def tell_failure(reason: str) -> None:
    """The pod cannot be set up."""
    Console().tell(failed=reason)


def uptime() -> int:
    """Milliseconds since the kernel began."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def main(channels: list[Channel], notify: _socket.socket, status: str, began: int) -> NoReturn:
    """Until SIGTERM, which systemd-shutdown sends when all units have stopped.

    `status`: the directory of files on how apps ended; `began`: the `uptime` when /init did.
    """
    try:
        Teller(channels, notify, status, began).run()
    except Exception as error:
        sys.stderr.write(f"what the apps write is lost: {type(error).__name__}: {error}\n")
    finally:
        os._exit(1)


class Teller:
    """The loop."""

    def __init__(self, channels: list[Channel], notify: _socket.socket, status: str, began: int) -> None:
        self._times = (began, uptime())
        self._console = Console()
        self._status = status
        self._notify = notify
        self._told: dict[str, str] = {}  # what the host knows of the files there
        self._ended: set[str] = set()  # apps that may start again
        self._pause = _LOOK_FIRST
        self._look_due = 0.0
        self._changes = watch_directory(status)
        self._kernel = os.open(KERNEL_LOG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._poll = select.epoll()
        self._wake, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake)
        signal.signal(signal.SIGTERM, lambda *_: None)
        self._since = time.monotonic_ns() // 1000
        with open(_PRINTK, "w", encoding="ascii") as file:  # what comes this way need not come twice; a panic does, whatever stands here
            file.write("1 4 1 7")
        self._channels = {channel.socket.fileno(): channel for channel in channels}
        for channel in channels:
            channel.socket.setblocking(False)
        notify.setblocking(False)
        for descriptor in (*self._channels, notify.fileno(), self._kernel, self._wake, self._changes):
            self._poll.register(descriptor, select.EPOLLIN)

    def run(self) -> None:
        while True:
            wait = max(self._look_due - time.monotonic(), 0) if self._ended else None
            ready = {descriptor for descriptor, _ in self._poll.poll(wait)}
            if self._changes in ready:
                self._read_changes()
            if self._ended and time.monotonic() >= self._look_due:
                self._look()
            for descriptor in ready & self._channels.keys():
                self._read_some(self._channels[descriptor])
            if self._kernel in ready:
                self._read_kernel()
            if self._notify.fileno() in ready:
                self._read_notes()
            if self._wake in ready:
                break
        for channel in self._channels.values():
            while self._read_some(channel):
                pass
            self._end_line(channel)
        self._read_kernel()
        self._read_notes()
        self._tell_states()
        self._console.tell(exit=_read_exit())
        self._console.flush()

    def _read_changes(self) -> None:
        with suppress(BlockingIOError):
            while os.read(self._changes, _READ_SIZE):
                pass
        self._tell_states()

    def _tell_states(self) -> None:
        """How apps ended, and what their probes say, as far as the host does not know it."""
        for name, text in _read_states(self._status):
            app, _, kind = name.partition(".")
            if self._told.get(name) == text:
                continue
            self._told[name] = text
            if kind:
                self._console.tell(probe=text, app=app)
            else:
                self._console.tell(result=text.rpartition(" ")[0], app=app)
                self._ended.add(app)
                self._pause = _LOOK_FIRST
                self._look_due = time.monotonic() + self._pause

    def _look(self) -> None:
        """Whether apps that have ended run again: nobody says that."""
        self._pause = min(self._pause * 2, _LOOK_LAST)
        self._look_due = time.monotonic() + self._pause
        for app in sorted(self._ended):
            if any(_is_populated(directory) for directory in cgroups(app)):
                self._console.tell(up=1, app=app)
                self._ended.discard(app)

    def _read_some(self, channel: Channel) -> bool:
        """One message; False when there is none."""
        try:
            data, ancillary, _, _ = channel.socket.recvmsg(_READ_SIZE, _socket.CMSG_SPACE(_CREDENTIALS))
        except BlockingIOError:
            return False
        if not data:  # PID 1 has become systemd-shutdown
            self._end_line(channel)
            with suppress(FileNotFoundError):
                self._poll.unregister(channel.socket.fileno())
            return False
        pid = int.from_bytes(ancillary[0][2][:4], "little") if ancillary else 0
        if pid != channel.pid:
            self._end_line(channel)
            channel.pid = pid
        *lines, channel.rest = (channel.rest + data).split(b"\n")
        for line in lines:
            self._tell_line(channel, line)
        while len(channel.rest) >= LINE_MAX:
            self._tell_line(channel, channel.rest[:LINE_MAX])
            channel.rest = channel.rest[LINE_MAX:]
        return True

    def _end_line(self, channel: Channel) -> None:
        if channel.rest:
            self._tell_line(channel, channel.rest)
            channel.rest = b""

    def _tell_line(self, channel: Channel, line: bytes) -> None:
        """`<N>` in front is a priority, trailing white space goes, and an empty line is none: as journald has it."""
        priority = channel.priority
        line = line.rstrip(b" \t\r")
        if len(line) >= 3 and line[:1] == b"<" and line[2:3] == b">" and line[1:2] in b"01234567":
            priority = int(line[1:2])
            line = line[3:]
        while line:
            text = line[:LINE_MAX].decode("utf-8", "surrogateescape")
            self._console.tell(app=channel.app, p=priority, pid=channel.pid, t=time.time_ns() // 1000, m=text)
            line = line[LINE_MAX:]

    def _read_kernel(self) -> None:
        """Warnings and worse, once each; those of systemd (facility 3) are the pod's own. Form: Documentation/ABI/testing/dev-kmsg."""
        while True:
            try:
                record = os.read(self._kernel, _READ_SIZE)
            except BlockingIOError:
                return
            except BrokenPipeError:  # some were overwritten before we got here
                continue
            head, _, rest = record.partition(b";")
            number, _, moment = (int(word) for word in head.split(b",")[:3])
            text = rest.split(b"\n", 1)[0].decode("utf-8", "replace")
            is_told = moment < self._since and number <= _PRINTED_LEVEL
            if number >> 3 or (number <= _KERNEL_LEVEL and not is_told):
                app = "pod" if number >> 3 else "kernel"
                since_then = time.monotonic_ns() // 1000 - moment
                self._console.tell(app=app, p=number & 7, pid=0, t=time.time_ns() // 1000 - since_then, m=text)

    def _read_notes(self) -> None:
        """sd_notify(3) of PID 1, and of nobody else."""
        while True:
            try:
                data, ancillary, _, _ = self._notify.recvmsg(4096, _socket.CMSG_SPACE(_CREDENTIALS))
            except BlockingIOError:
                return
            if not ancillary or int.from_bytes(ancillary[0][2][:4], "little") != 1:
                continue
            for line in data.decode("ascii", "replace").split("\n"):
                if line == "READY=1":
                    self._console.tell(ready=1, init=self._times[0], systemd=self._times[1], now=uptime())


def cgroups(app: str) -> tuple[str, str]:
    """Where an app's may be: PID 1 puts `_` before what looks like a file of the kernel's."""
    return f"{CGROUPS}/{app}.service", f"{CGROUPS}/_{app}.service"


def _is_populated(cgroup: str) -> bool:
    try:
        with open(f"{cgroup}/cgroup.events", encoding="ascii") as file:
            return "populated 1" in file.read()
    except OSError:
        return False


def _read_exit() -> int:
    """What was given to `systemctl exit`: PID 1 is systemd-shutdown by now, with that as its argument (become_shutdown, main.c)."""
    with open("/proc/1/cmdline", "rb") as file:
        words = file.read().replace(b"=", b"\0").split(b"\0")
    value = words[words.index(b"--exit-code") + 1] if b"--exit-code" in words else b"0"
    return int(value) & 255 if value.isdigit() else 255


def _read_states(directory: str) -> list[tuple[str, str]]:
    """Names and texts: of APP its end, with the time of it as the last word, of APP.ready what its probes say."""
    found = []
    for name in sorted(os.listdir(directory)):
        if not name.startswith(".") and name.partition(".")[2] in ("", "ready"):
            with open(f"{directory}/{name}", "rb") as file:
                text = file.read(_STATUS_MAX).decode("ascii", "replace").strip()
                stamp = "" if "." in name else f" {os.fstat(file.fileno()).st_mtime_ns}"
            found.append((name, text + stamp))
    return found
