# SPDX-License-Identifier: Apache-2.0
"""How long a service is waited for, and how its properties are told. What systemd does with them is shown in tests/integration."""

import errno
import os
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("pystemd")

from rktd_units import systemd
from rktd_units.errors import StateError, TemporaryError
from rktd_units.systemd import Manager, Property, ServiceResult, load_module

if TYPE_CHECKING:
    from collections.abc import Callable

NAME = "rktd-job-00.service"


class Bus:
    """Stands in for libsystemd's: a service that runs until it is stopped, or for so many looks."""

    def __init__(self, looks: int = sys.maxsize) -> None:
        self.looks = looks  # at its state, until it has ended
        self.states = 0
        self.stops = True
        self.signals: list[str] = []  # units whose jobs are said to have ended
        self.fault: Exception | None = None
        self.calls: list[str] = []
        self._note: Callable[..., None] | None = None
        self.values: dict[bytes, Any] = {b"Result": b"success", b"ExecMainCode": 1, b"ExecMainStatus": 0}
        self.pipe = os.pipe()

    def open(self) -> None:
        if self.fault:
            raise self.fault

    def close(self) -> None:
        for fd in self.pipe:
            os.close(fd)

    def get_fd(self) -> int:
        return self.pipe[0]

    def match_signal(self, sender: bytes, path: bytes, interface: bytes, member: bytes, callback: Any) -> None:
        assert member == b"JobRemoved"
        self._note = callback

    def process(self) -> None:
        if self.fault:
            raise self.fault
        if self.signals and self._note:
            body = [7, b"/job/7", self.signals.pop(0).encode(), b"done"]
            self._note(SimpleNamespace(process_reply=lambda headers: None, body=body), error=None, userdata=None)

    def call_method(self, service: bytes, path: bytes, interface: bytes, member: bytes, arguments: list[Any]) -> Any:
        words = [value for _, value in arguments if isinstance(value, bytes)]
        self.calls.append(member.decode())
        answer: Any = b"/unit"
        if member == b"ListUnitsByPatterns":
            answer = [[NAME.encode(), b"", b"loaded", b"activating", b"start", b"", b"", 0, b"", b""]]
        elif member == b"StopUnit" and self.stops:
            self.looks = 0
        elif member == b"Get":
            if words[-1] == b"ActiveState":
                self.states += 1
                self.looks -= 1
                answer = b"activating" if self.looks >= 0 else b"inactive"
            else:
                answer = self.values[words[-1]]
        return SimpleNamespace(body=answer)


@pytest.fixture
def bus(monkeypatch: pytest.MonkeyPatch) -> Bus:
    made = Bus()
    monkeypatch.setattr(load_module("pystemd.dbuslib"), "DBus", lambda: made)
    return made


def test_ended_at_once(bus: Bus) -> None:
    bus.looks, bus.signals = 0, [NAME]
    assert systemd.run_service(NAME, (), 60) == ServiceResult("success", 1, 0)
    assert bus.calls.count("StartTransientUnit") == 1


@pytest.mark.parametrize(("told", "peak"), [(5 << 20, 5 << 20), ((1 << 64) - 1, 0)], ids=["counted", "nobody-counts"])
def test_killed_for_want_of_memory(bus: Bus, told: int, peak: int) -> None:
    bus.looks, bus.signals = 0, [NAME]
    bus.values |= {b"Result": b"oom-kill", b"ExecMainCode": 2, b"ExecMainStatus": 9, b"MemoryPeak": told}
    assert systemd.run_service(NAME, (), 60) == ServiceResult("oom-kill", 2, 9, peak)


def test_a_signal_is_only_a_reason_to_look(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever may send signals can send one straight to us."""
    monkeypatch.setattr(systemd, "_LOOK", 0.05)
    bus.looks, bus.signals = 2, ["other.service", NAME, "other.service", NAME, NAME]
    assert systemd.run_service(NAME, (), 60).result == "success"
    assert bus.states == 3


def test_found_without_a_signal(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd, "_LOOK", 0.05)
    bus.looks = 1
    assert systemd.run_service(NAME, (), 60).result == "success"


def test_what_gets_on_may_take_long(bus: Bus) -> None:
    steps = iter(range(1000))
    bus.looks = 5
    assert systemd.run_service(NAME, (), 0.02, lambda: next(steps)).result == "success"
    assert next(steps) == 6


def test_what_does_not_get_on_is_stopped(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd, "_LOOK", 0.05)
    steps = iter((1, 2, 3, 3))
    assert systemd.run_service(NAME, (), 0.02, lambda: next(steps)) == ServiceResult("timeout", 0, 0)
    assert bus.calls.count("StopUnit") == 1


def test_who_gives_up_stops_it(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd, "_LOOK", 0.05)

    def interrupt() -> object:
        raise KeyboardInterrupt("given up")

    with pytest.raises(KeyboardInterrupt, match="given up"):
        systemd.run_service(NAME, (), 60, interrupt)
    assert bus.calls.count("StopUnit") == 1


def test_what_does_not_stop(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd, "_STOP_TIMEOUT", 0.05)
    bus.stops = False
    with pytest.raises(TemporaryError, match=rf"{NAME} does not stop"):
        systemd.stop_units([NAME])


def test_bus_that_is_not_there(bus: Bus) -> None:
    bus.fault = OSError(errno.ENOENT, "No such file or directory")
    with pytest.raises(TemporaryError, match="connect: "):
        systemd.run_service(NAME, (), 60)


def test_bus_that_goes(bus: Bus) -> None:
    with Manager() as manager:
        bus.fault = OSError(errno.ENOTCONN, "Transport endpoint is not connected")
        with pytest.raises(StateError, match=f"wait for {NAME}") as caught:
            manager.run_service(NAME, (), 60)
    assert isinstance(caught.value, TemporaryError)


@pytest.mark.parametrize(
    ("signature", "value", "expected"),
    [
        ("b", True, [("b", True)]),
        ("s", "ü", [("s", "ü".encode())]),
        ("as", ["a", "b"], [("a", b"s"), ("s", b"a"), ("s", b"b"), -1]),
        ("as", [], [("a", b"s"), -1]),
        ("(bas)", [True, ["x"]], [("r", b"bas"), ("b", True), ("a", b"s"), ("s", b"x"), -1, -1]),
        (
            "a(iayu)",
            [[2, b"\xa9\xfe", 16]],
            [("a", b"(iayu)"), ("r", b"iayu"), ("i", 2), ("a", b"y"), ("y", 169), ("y", 254), -1, ("u", 16), -1, -1],
        ),
        (
            "a(sasb)",
            [["/x", ["x"], False]],
            [("a", b"(sasb)"), ("r", b"sasb"), ("s", b"/x"), ("a", b"s"), ("s", b"x"), -1, ("b", False), -1, -1],
        ),
    ],
    ids=["bool", "text", "array", "empty-array", "structure", "bytes-in-structures", "command"],
)
def test_properties(signature: str, value: Any, expected: list[Any]) -> None:
    told = systemd._render_transient("x.service", [Property("Name", signature, value)])
    inner = [(-1, None) if item == -1 else (ord(item[0]), item[1]) for item in expected]
    head = [(ord("s"), b"x.service"), (ord("s"), b"fail"), (ord("a"), b"(sv)"), (ord("r"), b"sv"), (ord("s"), b"Name")]
    head.append((ord("v"), signature.encode()))
    tail = [(-1, None), (-1, None), (-1, None), (ord("a"), b"(sa(sv))"), (-1, None)]
    assert told == [*head, *inner, *tail]


def test_placeholders_do_not_stay() -> None:
    load_module("pystemd.dbuslib")
    import pathlib
    import pprint

    assert pprint.pformat is not repr
    assert pathlib.Path("/a").name == "a"
