# SPDX-License-Identifier: Apache-2.0
"""The thin door to pystemd: short calls to PID 1. Text in and out; no unit is introspected (5 ms each); pystemd is imported on first use.

Never wait in it beside threads: pystemd holds the interpreter's lock while it waits. Waiting is what bus.py is for.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module  # pystemd has no types
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any, Self

from rktd_units.errors import PASSING, NoReplyError, StateError

_NAME = b"org.freedesktop.systemd1"
_PATH = b"/org/freedesktop/systemd1"
_MACHINE = b"org.freedesktop.machine1"
_MACHINES = b"org.freedesktop.machine1.Manager"
_MACHINES_PATH = b"/org/freedesktop/machine1"
_MANAGER = b"org.freedesktop.systemd1.Manager"
_PROPERTIES = b"org.freedesktop.DBus.Properties"


class Manager:
    """A connection to PID 1 on the system bus, open as long as the context."""

    def __init__(self) -> None:
        self._bus: Any = load_module("pystemd.dbuslib").DBus()

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


def load_module(name: str) -> Any:
    """A module of pystemd, without what its package imports at once: lxml, for introspection, would be 25 ms of every short command."""
    spec = None if "pystemd" in sys.modules else PathFinder.find_spec("pystemd")
    if spec is not None and spec.submodule_search_locations is not None:
        package = ModuleType("pystemd")
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["pystemd"] = package
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
