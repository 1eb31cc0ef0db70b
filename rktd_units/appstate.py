# SPDX-License-Identifier: Apache-2.0
"""What the systemd inside a pod says of the pod's apps.

It is asked over its private socket, from within its process name space (it answers nobody whose pid it cannot see), by a child process that
has given up all of the host's privileges: what answers may be hostile. A pod that does not answer in time is left out.
"""

import json
import os
import select
import signal
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from rktd_units import tasks
from rktd_units.names import is_label
from rktd_units.systemd import load_module

DEADLINE = 1.0  # seconds for all pods together
_ANSWER_MAX = 1 << 20
_SYSTEMD = b"org.freedesktop.systemd1"
_PATH = b"/org/freedesktop/systemd1"


class AppState(NamedTuple):
    """One app as its systemd has it. `pid` is of the pod's name space, 0 for none; `since` in µs since 1970, 0 for never."""

    active: str
    sub: str
    result: str
    pid: int
    code: int  # of waitid(2): 1 exited, 2 killed, 3 dumped; 0 while it has not ended
    status: int
    restarts: int
    since: int


_PROPERTIES = (b"Result", b"MainPID", b"ExecMainCode", b"ExecMainStatus", b"NRestarts", b"ExecMainStartTimestamp")
_TYPES = (str, str, str, int, int, int, int, int)


def ask_pods(leaders: Mapping[str, int], deadline: float = DEADLINE) -> dict[str, dict[str, AppState]]:
    """Pod name -> app -> state. `leaders`: each pod's PID 1 as a host pid. Needs root; a pod that cannot be asked is not in the answer."""
    end = time.monotonic() + deadline
    load_module("pystemd.dbuslib")  # before the forks
    found = {}
    askers = []
    for pod, leader in leaders.items():
        try:
            askers.append((pod, *_start_asker(leader)))
        except OSError:
            continue
    for pod, child, answer in askers:
        try:
            data = _read_answer(answer, end)
        finally:
            os.close(answer)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        states = parse_answer(data)
        if states is not None:
            found[pod] = states
    return found


def _start_asker(leader: int) -> tuple[int, int]:
    """(child, descriptor of what it finds out)."""
    pidfd = os.pidfd_open(leader)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(read)
            tasks.forbid_dumps()
            if tasks.differing_namespaces(leader) & tasks.CLONE_NEWPID:
                tasks.join_namespaces(pidfd, tasks.CLONE_NEWPID)
            directory = _open_directory(leader)
            if os.fork() == 0:  # only children are in the joined name space
                tasks.die_with_parent(signal.SIGKILL)
                _write(write, json.dumps(_ask(directory)).encode())
            else:
                os.close(write)
                os.wait()
        finally:
            os._exit(0)
    os.close(write)
    os.close(pidfd)
    return child, read


def _open_directory(leader: int) -> int:
    from rktd_units import mounts

    root = os.open(f"/proc/{leader}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return mounts.openat2(root, "run/systemd", os.O_PATH | os.O_DIRECTORY, mounts.RESOLVE_IN_ROOT | mounts.RESOLVE_NO_SYMLINKS)


def _ask(directory: int) -> dict[str, tuple[Any, ...]]:
    """All services of the pod but its own ones, which no app could be called as, by name without the suffix."""
    dbuslib = load_module("pystemd.dbuslib")
    status = os.stat("private", dir_fd=directory, follow_symlinks=False)
    if status.st_uid:
        os.setgroups([])
        os.setresgid(status.st_gid, status.st_gid, status.st_gid)
        os.setresuid(status.st_uid, status.st_uid, status.st_uid)
        tasks.die_with_parent(signal.SIGKILL)
    bus = dbuslib.DBusAddress(f"unix:path=/proc/self/fd/{directory}/private".encode(), peer_to_peer=True)
    bus.open()
    manager = _SYSTEMD + b".Manager"
    query = dbuslib.apply_signature(b"asas", [[], [b"*.service"]])
    answer: dict[str, tuple[Any, ...]] = {}
    for unit in bus.call_method(_SYSTEMD, _PATH, manager, b"ListUnitsByPatterns", query).body:
        name = unit[0].decode("utf-8", "replace").removesuffix(".service")
        if is_label(name):
            values = [_get(bus, dbuslib, unit[6], p) for p in _PROPERTIES]
            answer[name] = (_text(unit[3]), _text(unit[4]), *values)
    return answer


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _get(bus: Any, dbuslib: Any, path: bytes, name: bytes) -> Any:
    arguments = dbuslib.apply_signature(b"ss", [_SYSTEMD + b".Service", name])
    return _text(bus.call_method(_SYSTEMD, path, b"org.freedesktop.DBus.Properties", b"Get", arguments).body)


def _text(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _read_answer(descriptor: int, end: float) -> bytes:
    data = b""
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    while len(data) <= _ANSWER_MAX and poller.poll(max(end - time.monotonic(), 0) * 1000):
        part = os.read(descriptor, 65536)
        if not part:
            return data
        data += part
    return b""


def parse_answer(data: bytes) -> dict[str, AppState] | None:
    """What an asker wrote; None for what is no such thing."""
    try:
        answer = json.loads(data)
    except ValueError:
        return None
    states = {}
    for name, fields in answer.items() if isinstance(answer, dict) else ():
        if isinstance(fields, list) and len(fields) == len(_TYPES) and all(isinstance(f, t) for f, t in zip(fields, _TYPES, strict=True)):
            states[name] = AppState(*fields)
    return states
