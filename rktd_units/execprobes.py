# SPDX-License-Identifier: Apache-2.0
"""Runs the exec probes and hooks of one pod, on the host: rktd-exec@NAME.service, which prober and hook in the pod wake by its socket. In a
Xen guest stage1/guestprobes.py does, which is the same but for where it looks.

A fork of this process enters the app, as `podctl exec` does: a tenth of the CPU time of a unit of its own in the pod. Who asks is the pod's
root, and hostile: all that it can say is which command of pod.json is to run now, and which process of the app is the main one; and that
the status of pod@NAME is to tell anew which apps are ready.
"""

import json
import marshal
import os
import select
import signal
import socket
import struct
import sys
import time
from contextlib import suppress
from typing import Any, NamedTuple

from rktd_units import tasks
from rktd_units.cgroups import app_cgroup, find_host_pid, leader_of, pod_cgroup, read_quietly
from rktd_units.enter import REFUSED, Enter, Limits, Order, describe_app
from rktd_units.paths import Layout
from rktd_units.runfiles import describe_readiness, read_text, read_untrusted

_REQUEST_MAX = 512
_CONNECTIONS_MAX = 64
_SILENCE = 1.0  # seconds until a connection must have said what it wants; the prober says it at once
_STATUS_PAUSE = 1.0  # seconds between two changes of the unit's status
_IDLE = 10.0  # seconds without work after which it ends, where no probe will come; the socket starts it again
_NOTIFY = "/run/systemd/notify"
_PAUSE = 0.05  # seconds between two starts of a probe: the prober's own are further apart
_FIRST_FD = 3
_EX_EXEC = 203  # what was to be run could not be executed (systemd.exec(5)); the prober says so
_TROUBLE_MAX = 200  # bytes of an answer


class Run(NamedTuple):
    """A probe that runs: who enters the app for it, and the cgroup below the app's in which its processes are."""

    key: tuple[str, str]
    pid: int
    pidfd: int
    group: str
    process: tuple[str, str]  # the app, and its main process
    found: int  # a file in memory, where the limits of that are written if they were not known
    trouble: int  # the same, for why the command was not run, but for what is wrong with itself


class Server:
    """One loop; nothing in it waits for a probe."""

    may_be_unfiltered = False  # whether an app may be without any filter of system calls: see Order

    def __init__(self, name: str, listener: socket.socket, layout: Layout) -> None:
        self._name = name
        self._layout = layout
        self._listener = listener
        self._poll = select.poll()
        self._poll.register(listener, select.POLLIN)
        self._connections: dict[int, socket.socket] = {}  # by descriptor
        self._runs: dict[int, Run] = {}  # by the connection's descriptor
        self._ends: dict[int, int] = {}  # descriptor of the process -> that of the connection
        self._silent: dict[int, float] = {}  # descriptor of a connection that has said nothing yet -> until when it may; oldest first
        self._stamp: tuple[int, int] = (0, 0)
        self._record: dict[str, Any] = {}
        self._closed: set[int] = set()  # in this turn: of the events that came with it none is of what has such a descriptor now
        self._begun: dict[tuple[str, str], float] = {}
        self._limits: dict[tuple[str, str], Limits] = {}  # by app and process, of the apps' present runs
        self.status_due = 0.0  # when to tell it; 0 when there is nothing to tell
        self._status_told = 0.0

    def run(self) -> None:
        """Until it is killed, or has nothing to do."""
        while self.turn():
            pass

    def turn(self) -> bool:
        """Waits for something to do, and does it. False if there was nothing."""
        dues = [self.status_due] if self.status_due else []
        dues += list(self._silent.values())[:1]
        if not dues and not self._runs and not self.has_probes():
            dues.append(time.monotonic() + _IDLE)
        wait = max(min(dues) - time.monotonic(), 0) * 1000 + 1 if dues else None
        self._closed.clear()
        events = self._poll.poll(wait)
        for descriptor, _ in events:
            if descriptor in self._closed:
                continue
            if descriptor == self._listener.fileno():
                self._accept()
            elif descriptor in self._ends:
                self._finish(self._ends[descriptor])
            elif descriptor in self._runs:
                self._drop(descriptor)  # nobody waits any more: the time is up
            elif descriptor in self._connections:
                self._answer(descriptor)
        is_idle = not events and not self._connections and not self.status_due
        self._hang_up()
        if self.status_due and time.monotonic() >= self.status_due:
            self.tell_status()
        return not is_idle

    def has_probes(self) -> bool:
        return any(entry["probes"] for entry in self._load_record().get("apps", ()))

    def tell_status(self) -> None:
        """In the name of nspawn, the main process of pod@NAME, for only that may speak for the unit: the pod's PID 1 is its child.

        Nothing that the pod says gets into the text.
        """
        self.status_due, self._status_told = 0.0, time.monotonic()
        lines = read_quietly(f"/proc/{leader_of(self._name)}/status").splitlines()
        parent = next((line[5:] for line in lines if line.startswith("PPid:")), "0")
        names = [entry["name"] for entry in self._load_record().get("apps", ())]
        states = {name: read_untrusted(f"{self._layout.pod(self._name)}/status/{name}.ready").strip() for name in names}
        speak_for(int(parent), f"STATUS={describe_readiness(states)}")

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # no descriptor left, or memory: later
            time.sleep(_PAUSE)
            return
        if len(self._connections) >= _CONNECTIONS_MAX or not self._is_pods(connection):
            connection.close()
            return
        connection.setblocking(False)
        self._connections[connection.fileno()] = connection
        self._silent[connection.fileno()] = time.monotonic() + _SILENCE
        self._poll.register(connection, select.POLLIN)

    def _is_pods(self, connection: socket.socket) -> bool:
        """Whether the pod's root has made it. What others do costs next to nothing."""
        _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        record = self._load_record()
        return bool(record) and uid == (record["idBase"] or 0)

    def _load_record(self) -> dict[str, Any]:
        """pod.json, read when it is another one; empty where there is none."""
        path = f"{self._layout.pod(self._name)}/pod.json"
        try:
            status = os.stat(path)
            if (status.st_ino, status.st_mtime_ns) != self._stamp:
                self._record = json.loads(read_text(path) or "{}")
                self._stamp = status.st_ino, status.st_mtime_ns
        except (OSError, ValueError):
            return {}
        return self._record

    def _hang_up(self) -> None:
        """Closes connections that have said nothing for too long."""
        now = time.monotonic()
        for descriptor in [descriptor for descriptor, until in self._silent.items() if until <= now]:
            self._close(descriptor, "! the request has not come")

    def _answer(self, descriptor: int) -> None:
        connection = self._connections[descriptor]
        self._silent.pop(descriptor, None)
        try:
            text, given, _, _ = socket.recv_fds(connection, _REQUEST_MAX, 1, socket.MSG_CMSG_CLOEXEC)
            try:
                pid = read_pid(given[0]) if given else 0
            finally:
                for process in given:
                    os.close(process)
            if text == b"status":
                self.status_due = max(time.monotonic(), self._status_told + _STATUS_PAUSE)
                self._close(descriptor, "")
                return
            self._runs[descriptor] = run = self._start(text.decode("ascii").split(), pid)
        except (OSError, ValueError, KeyError) as error:
            self._close(descriptor, f"! {(getattr(error, 'strerror', '') or 'the request is wrong').lower()}")
            return
        self._ends[run.pidfd] = descriptor
        self._poll.register(run.pidfd, select.POLLIN)

    def _start(self, words: list[str], pid: int) -> Run:
        """`pid`: of the app's main process; 0 where a prober of an older version has told only its pid in the pod.

        Raises OSError, KeyError or ValueError when that cannot be.
        """
        app, kind, inner = words
        record = self._load_record()
        found = {entry["name"]: entry for entry in record["apps"]}[app]
        argv: list[str] = (found["probes"] | found.get("hooks", {}))[kind]  # of an older version there are no hooks
        key, now = (app, kind), time.monotonic()
        if now - self._begun.get(key, 0) < _PAUSE:
            raise ValueError(key)
        self._begun[key] = now
        for descriptor in [descriptor for descriptor, run in self._runs.items() if run.key == key]:
            self._drop(descriptor)
        group, leader = self.locate(app)
        pid = pid or find_host_pid(group, int(inner)) or 0
        if not pid:
            raise ProcessLookupError(3, "the app has ended")
        below = f"rktd-{kind}"
        with suppress(FileExistsError):
            os.mkdir(f"{group}/{below}")
        own = describe_app(record, found, read_text(f"{self._layout.vault}/{self._name}/exec/{app}"))
        order = Order(pid, leader, group, argv, **own, terminal=False, interactive=False, below=below, unfiltered=self.may_be_unfiltered)
        process = app, f"{pid} {_start_time(pid)}"
        return _fork(key, order, process, self._limits.get(process))

    def locate(self, app: str) -> tuple[str, int]:
        """The directory of its cgroup, and the pod's PID 1. Raises ProcessLookupError when the pod has ended."""
        return app_cgroup(pod_cgroup(self._name), app), leader_of(self._name)

    def _finish(self, descriptor: int) -> None:
        """Tells the exit code."""
        run = self._runs[descriptor]
        _, status = os.waitpid(run.pid, 0)
        self._learn(run)
        trouble = os.pread(run.trouble, _TROUBLE_MAX, 0).decode("utf-8", "replace") or ("" if os.WIFEXITED(status) else "it was killed")
        self._forget(descriptor)
        self._close(descriptor, f"! {trouble}" if trouble else str(os.waitstatus_to_exitcode(status)))

    def _learn(self, run: Run) -> None:
        """Keeps the limits of an app's process for its next probes."""
        if size := os.fstat(run.found).st_size:
            self._limits = {process: limits for process, limits in self._limits.items() if process[0] != run.process[0]}
            self._limits[run.process] = Limits(*marshal.loads(os.pread(run.found, size, 0)))

    def _drop(self, descriptor: int) -> None:
        """Ends a probe."""
        run = self._runs[descriptor]
        os.kill(run.pid, signal.SIGKILL)
        os.waitpid(run.pid, 0)
        self._forget(descriptor)
        self._close(descriptor, "! it was ended")

    def _forget(self, descriptor: int) -> None:
        """What is left of a probe that has ended, processes in the background too, is killed."""
        run = self._runs.pop(descriptor)
        self._poll.unregister(run.pidfd)
        del self._ends[run.pidfd]
        self._closed.add(run.pidfd)
        os.close(run.pidfd)
        os.close(run.found)
        os.close(run.trouble)
        with suppress(OSError):  # the app may be gone with it
            with open(f"{run.group}/cgroup.kill", "w", encoding="ascii") as file:
                file.write("1")
            os.rmdir(run.group)

    def _close(self, descriptor: int, text: str) -> None:
        connection = self._connections.pop(descriptor)
        self._silent.pop(descriptor, None)
        self._poll.unregister(descriptor)
        self._closed.add(descriptor)
        with suppress(OSError):
            connection.send(text.encode())
        connection.close()


def speak_for(pid: int, text: str) -> None:
    """To the host's PID 1, as if that process said it; it takes the capability to name another one's pid (unix(7), SCM_CREDENTIALS)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel, suppress(OSError):
        channel.connect(_NOTIFY)
        channel.sendmsg([text.encode()], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, struct.pack("3i", pid, 0, 0))])


def read_pid(pidfd: int) -> int:
    """The host pid of the process of a pidfd, whatever name space it comes from (pidfd_open(2), fdinfo). Raises OSError or ValueError."""
    lines = read_quietly(f"/proc/self/fdinfo/{pidfd}").splitlines()
    pid = next((int(line[4:]) for line in lines if line.startswith("Pid:")), None)
    if pid is None:
        raise ValueError(pidfd)
    if pid <= 0:
        raise ProcessLookupError(3, "the app has ended")
    return pid


def _start_time(pid: int) -> str:
    """In clock ticks since boot (proc_pid_stat(5)); with the pid it names a process for good."""
    return (read_quietly(f"/proc/{pid}/stat").rpartition(")")[2].split() + ["?"] * 20)[19]


def _fork(key: tuple[str, str], order: Order, process: tuple[str, str], limits: Limits | None) -> Run:
    found, trouble = os.memfd_create("limits"), os.memfd_create("trouble")
    try:
        pid = os.fork()
    except OSError:
        os.close(found)
        os.close(trouble)
        raise
    if pid == 0:
        code, fault = REFUSED, ""
        try:
            sys.stderr = os.fdopen(os.dup(2), "w")  # why a command cannot be run goes to the journal; what it writes does not
            null = os.open("/dev/null", os.O_RDWR)
            for standard in range(3):
                os.dup2(null, standard)
            enter = Enter(order, limits)
            if limits is None:
                os.write(found, marshal.dumps(tuple(enter.limits)))
            code, fault = enter.run(), enter.fault
            if fault and code != REFUSED:
                sys.stderr.write(f"{key[1]} of app {key[0]}: {fault}\n")
                code, fault = _EX_EXEC, ""
        except OSError as error:
            fault = f"{error.filename or 'exec'}: {error.strerror}"
        finally:
            os.write(trouble, fault.encode())
            sys.stderr.flush()
            os._exit(code)
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(found)
        os.close(trouble)
        raise
    return Run(key, pid, pidfd, f"{order.cgroup}/{order.below}", process, found, trouble)


def main(argv: list[str]) -> int:
    """`execprobes NAME`, with the socket from systemd (sd_listen_fds(3))."""
    if os.environ.get("LISTEN_FDS") != "1":
        sys.stderr.write("execprobes: is started by rktd-exec@.socket\n")
        return 64
    listener = socket.socket(fileno=_FIRST_FD)
    listener.set_inheritable(False)
    tasks.forbid_dumps()
    Server(argv[1], listener, Layout()).run()
    return 0
