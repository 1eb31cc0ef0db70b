# SPDX-License-Identifier: Apache-2.0
"""The thin door to pystemd: short calls to PID 1. Text in and out; no unit is introspected (5 ms each); pystemd is imported on first use.

Never wait in pystemd beside threads: it holds the interpreter's lock while it waits. `run_service` waits in poll(2); for all else that
waits there is bus.py, which costs 60 ms to import.
"""

import os
import select
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module  # pystemd has no types
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any, NamedTuple, Self

from rktd_units.errors import PASSING, NoReplyError, StateError, TemporaryError
from rktd_units.imports import placeholders

_NAME = b"org.freedesktop.systemd1"
_PATH = b"/org/freedesktop/systemd1"
_MACHINE = b"org.freedesktop.machine1"
_MACHINES = b"org.freedesktop.machine1.Manager"
_MACHINES_PATH = b"/org/freedesktop/machine1"
_MANAGER = b"org.freedesktop.systemd1.Manager"
_PROPERTIES = b"org.freedesktop.DBus.Properties"
_QUEUE = 64  # messages that are taken before a wait: those that came during a call are in libsystemd's queue, where poll() sees none
_UNUSED: dict[str, dict[str, Any] | None] = {"pprint": {"pformat": repr}, "pathlib": {"Path": os.PathLike}}  # 12 ms, for errors and paths
_LOOK = 30.0  # seconds after which an ended service is found even if no signal told of it
_UNKNOWN = (1 << 64) - 1  # of a counter
_STOP_TIMEOUT = 10.0  # seconds that a service has after SIGKILL


class Property(NamedTuple):
    """A unit property as StartTransientUnit takes it; `signature` is its D-Bus type."""

    name: str
    signature: str
    value: Any


class ServiceResult(NamedTuple):
    """How a service ended: `result` as Result= of systemctl show has it; code and status as waitid(2).

    `memory_peak` in bytes, told after the result oom-kill only; 0 where nobody has counted.
    """

    result: str
    exit_code: int
    exit_status: int
    memory_peak: int = 0


class Manager:
    """A connection to PID 1 on the system bus, open as long as the context."""

    def __init__(self) -> None:
        self._bus: Any = load_module("pystemd.dbuslib").DBus()
        self._told: set[str] = set()  # units whose jobs have ended, by what signals say
        self._listens: object = None  # pystemd holds no reference to what it calls

    def __enter__(self) -> Self:
        with _told_errors("connect"):
            self._bus.open()
        return self

    def __exit__(self, *_: object) -> None:
        self._bus.close()

    def reload(self) -> None:
        """daemon-reload: returns when the generators have run."""
        self._call("Reload")

    def start_unit(self, name: str, mode: str = "replace") -> None:
        """Enqueue a start job; does not wait for it."""
        self._call("StartUnit", name.encode(), mode.encode())

    def stop_unit(self, name: str, mode: str = "replace") -> None:
        """Enqueue a stop job; does not wait for it."""
        self._call("StopUnit", name.encode(), mode.encode())

    def start_transient(self, name: str, description: str, bound_to: Sequence[str], at_end: Sequence[Sequence[str]]) -> None:
        """A transient service that is up as long as all units in `bound_to`, which it starts; then it executes `at_end`. Does not wait."""
        properties = {
            b"Description": description.encode(),
            b"BindsTo": [unit.encode() for unit in bound_to],
            b"After": [unit.encode() for unit in bound_to],
            b"CollectMode": b"inactive-or-failed",
            b"Type": b"oneshot",
            b"RemainAfterExit": True,
            b"ExecStart": [(b"/bin/true", (b"true",), False)],
            b"ExecStop": [(argv[0].encode(), tuple(word.encode() for word in argv), True) for argv in at_end],
        }
        self._start_transient(name, properties)

    def start_scope(self, name: str, description: str, pid: int) -> None:
        """Puts a process, and what it starts from now on, into a transient scope."""
        load_module("pystemd.systemd1.unit_signatures").KNOWN_UNIT_SIGNATURES[b"PIDs"] = b"au"  # missing there
        properties = {b"Description": description.encode(), b"PIDs": [pid], b"CollectMode": b"inactive-or-failed"}
        self._start_transient(name, properties)

    def _start_transient(self, name: str, properties: dict[bytes, Any]) -> None:
        with _told_errors(f"StartTransientUnit {name}"):
            manager = load_module("pystemd.systemd1").Manager(bus=self._bus)
            manager.load()
            manager.Manager.StartTransientUnit(name.encode(), b"fail", properties)

    def run_service(
        self, name: str, properties: Sequence[Property], timeout: float, progress: Callable[[], object] = lambda: None
    ) -> ServiceResult:
        """Start a transient oneshot service and wait until it has ended. AddRef= is ours.

        It is stopped, with the result "timeout", when `progress` gives the same after `timeout` seconds as it did before them, and when
        anything is raised, as by Ctrl-C.
        """
        try:
            with _told_errors(f"StartTransientUnit {name}"):
                self._listen()
                settings = (*properties, Property("AddRef", "b", True))
                self._bus.call_method(_NAME, _PATH, _MANAGER, b"StartTransientUnit", _render_transient(name, settings))
            before = progress()
            while not (ended := self._is_over(name, timeout)) and (now := progress()) != before:
                before = now
        except BaseException:
            with suppress(StateError, TemporaryError):  # what was raised says more
                self.stop_units([name])
            raise
        if not ended:
            self.stop_units([name])
            return ServiceResult("timeout", 0, 0)
        result = ServiceResult(*self.get_properties(name, "Service", ("Result", "ExecMainCode", "ExecMainStatus")))
        if result.result != "oom-kill":
            return result
        peak = int(self.get_property(name, "Service", "MemoryPeak"))
        return result._replace(memory_peak=peak if peak < _UNKNOWN else 0)

    def stop_units(self, names: Sequence[str]) -> None:
        """Stop units, all at once, and wait until they have ended; those that are not there are fine."""
        with _told_errors("AddMatch"):
            self._listen()
        there = [found[0] for found in self.list_units(*names)]
        for name in there:
            with suppress(StateError):  # ended meanwhile; else it is told below
                self.stop_unit(name)
        for name in there:
            if not self._is_over(name, _STOP_TIMEOUT):
                raise TemporaryError(f"{name} does not stop")

    def _listen(self) -> None:
        """Note the units whose jobs have ended. Whoever sends such a signal: it is only a reason to look."""

        def note(message: Any, *, error: object, userdata: object) -> None:
            message.process_reply(False)
            self._told.update(_as_text(message.body)[2:3])

        if not self._listens:
            self._bus.match_signal(_NAME, _PATH, _MANAGER, b"JobRemoved", note)
            self._listens = note

    def _is_over(self, name: str, patience: float) -> bool:
        """Whether a unit has ended, or does so within so many seconds."""
        poll, end, look = select.poll(), time.monotonic() + patience, False
        poll.register(self._bus.get_fd(), select.POLLIN)
        while True:
            with _told_errors(f"wait for {name}"):
                for _ in range(_QUEUE):
                    self._bus.process()
            left = end - time.monotonic()
            if (look or left <= 0 or name in self._told) and self.get_property(name, "Unit", "ActiveState") in ("inactive", "failed"):
                return True
            self._told.discard(name)
            if left <= 0:
                return False
            look = not poll.poll(min(left, _LOOK) * 1000)

    def reset_failed(self, name: str) -> None:
        self._call("ResetFailedUnit", name.encode())

    def get_property(self, unit: str, interface: str, name: str) -> Any:
        """A property such as ("pod@web.service", "Service", "Result"); the unit is loaded for it. Bytes come as text."""
        path = self._call("LoadUnit", unit.encode())
        return _as_text(self._call("Get", f"{_NAME.decode()}.{interface}".encode(), name.encode(), path=path, interface=_PROPERTIES))

    def version(self) -> str:
        """Of PID 1, as it calls itself."""
        return str(_as_text(self._call("Get", _MANAGER, b"Version", interface=_PROPERTIES)))

    def list_units(self, *patterns: str) -> list[tuple[str, str, str, str, str]]:
        """(name, load state, active state, sub state, type of the job that waits or runs, or "") of the loaded units that match, sorted."""
        with _told_errors("ListUnitsByPatterns"):
            lists = [[], [p.encode() for p in patterns]]
            signed = load_module("pystemd.dbuslib").apply_signature(b"asas", lists)
            found = self._bus.call_method(_NAME, _PATH, _MANAGER, b"ListUnitsByPatterns", signed).body
        return sorted((_as_text(u[0]), _as_text(u[2]), _as_text(u[3]), _as_text(u[4]), _as_text(u[8])) for u in found)

    def get_properties(self, unit: str, interface: str, names: Sequence[str]) -> list[Any]:
        """Several at once; see `get_property`."""
        path = self._call("LoadUnit", unit.encode())
        kind = f"{_NAME.decode()}.{interface}".encode()
        return [_as_text(self._call("Get", kind, name.encode(), path=path, interface=_PROPERTIES)) for name in names]

    def unregister_machine(self, name: str, unit: str) -> None:
        """Have machined forget a machine of that name, if it is one of `unit`'s."""
        path = self._call("GetMachine", name.encode(), path=_MACHINES_PATH, interface=_MACHINES, service=_MACHINE)
        found = self._call("Get", _MACHINE + b".Machine", b"Unit", path=path, interface=_PROPERTIES, service=_MACHINE)
        if _as_text(found) == unit:
            self._call("UnregisterMachine", name.encode(), path=_MACHINES_PATH, interface=_MACHINES, service=_MACHINE)

    def _call(self, member: str, *arguments: bytes, path: bytes = _PATH, interface: bytes = _MANAGER, service: bytes = _NAME) -> Any:
        """All that is called here takes strings only."""
        with _told_errors(" ".join([member, *(a.decode() for a in arguments)])):
            signed = load_module("pystemd.dbuslib").apply_signature(b"s" * len(arguments), list(arguments))
            return self._bus.call_method(service, path, interface, member.encode(), signed).body


def run_service(name: str, properties: Sequence[Property], timeout: float, progress: Callable[[], object] = lambda: None) -> ServiceResult:
    """Manager.run_service over a connection of its own. Raises TemporaryError if there is none."""
    with _connected() as manager:
        return manager.run_service(name, properties, timeout, progress)


def stop_units(names: Sequence[str]) -> None:
    """Manager.stop_units over a connection of its own. Raises TemporaryError if there is none."""
    with _connected() as manager:
        manager.stop_units(names)


@contextmanager
def _connected() -> Iterator[Manager]:
    with ExitStack() as opened:
        try:
            manager = opened.enter_context(Manager())
        except StateError as error:
            raise TemporaryError(str(error)) from error
        yield manager


def _render_transient(name: str, properties: Sequence[Property]) -> list[tuple[int, Any]]:
    """The arguments of StartTransientUnit, as pystemd appends them one by one: (type, value), containers opened and closed (-1)."""
    found: list[tuple[int, Any]] = [(ord("s"), name.encode()), (ord("s"), b"fail"), (ord("a"), b"(sv)")]
    for key, signature, value in properties:
        found += [(ord("r"), b"sv"), (ord("s"), key.encode()), (ord("v"), signature.encode())]
        rest = _append_value(found, signature, value)
        assert not rest, signature
        found += [(-1, None), (-1, None)]
    return [*found, (-1, None), (ord("a"), b"(sa(sv))"), (-1, None)]


def _append_value(found: list[tuple[int, Any]], signature: str, value: Any) -> str:
    """One complete type of the signature; gives the rest of that. Structures and arrays are sequences. dbus-specification, Type System."""
    kind, rest = signature[0], signature[1:]
    if kind == "a":
        size = len(rest) - len(_skip_type(rest))
        found.append((ord("a"), rest[:size].encode()))
        for item in value:
            _append_value(found, rest, item)
        found.append((-1, None))
        return rest[size:]
    if kind == "(":
        size = len(signature) - len(_skip_type(signature))
        found.append((ord("r"), signature[1 : size - 1].encode()))
        for item in value:
            rest = _append_value(found, rest, item)
        found.append((-1, None))
        return rest[1:]
    found.append((ord(kind), value.encode() if isinstance(value, str) else value))
    return rest


def _skip_type(signature: str) -> str:
    """What follows the first complete type."""
    if signature[0] == "a":
        return _skip_type(signature[1:])
    if signature[0] != "(":
        return signature[1:]
    rest = signature[1:]
    while rest[0] != ")":
        rest = _skip_type(rest)
    return rest[1:]


def load_module(name: str) -> Any:
    """A module of pystemd, without what its package imports at once: lxml, for introspection, would be 25 ms of every short command."""
    spec = None if "pystemd" in sys.modules else PathFinder.find_spec("pystemd")
    if spec is not None and spec.submodule_search_locations is not None:
        package = ModuleType("pystemd")
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["pystemd"] = package
    with placeholders(_UNUSED):
        return import_module(name)


@contextmanager
def _told_errors(what: str) -> Iterator[None]:
    """Turn pystemd's errors into StateError that says what was asked; NoReplyError where it may go well later."""
    try:
        yield
    except (load_module("pystemd.dbusexc").DBusBaseError, OSError) as error:
        text = _as_text(getattr(error, "err_message", "")) or str(error)
        number = abs(error.errno or 0)  # pystemd's are negative
        kind = NoReplyError if number in PASSING else StateError
        raise kind(f"systemd: {what}: {text}") from error


def _as_text(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list | tuple):
        return [_as_text(v) for v in value]
    return value
