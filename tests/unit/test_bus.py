# SPDX-License-Identifier: Apache-2.0
"""How long a service is waited for. What the bus itself does is shown in tests/integration."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("dbus_next")

from dbus_next.constants import MessageType

from rktd_units.bus import Bus
from rktd_units.errors import TemporaryError


def wait(progress: Any, *, end: float = 60, connected: bool = True) -> tuple[bool, float]:
    """What comes of waiting with a patience of 0.1 seconds for a service that ends at `end`; and the seconds that it took."""

    async def main() -> tuple[bool, float]:
        loop = asyncio.get_running_loop()
        bus: Any = SimpleNamespace(_disconnect_future=loop.create_future(), connected=connected)
        ended: asyncio.Future[str] = loop.create_future()
        loop.call_later(end, ended.set_result, "done")
        began = loop.time()
        return await Bus(bus)._wait(ended, "x.service", 0.1, progress), loop.time() - began

    return asyncio.run(main())


def test_what_gets_on_may_take_long() -> None:
    steps = iter(range(1000))
    assert wait(lambda: next(steps), end=0.5)[0] is True


def test_what_does_not_get_on_is_given_up() -> None:
    steps = iter((1, 2, 3, 3))
    ended, took = wait(lambda: next(steps))
    assert ended is False
    assert 0.3 <= took < 3


def test_bus_that_goes() -> None:
    with pytest.raises(TemporaryError, match=r"the system bus went while x\.service ran"):
        wait(lambda: 1, connected=False)


def test_signals_of_others_are_not_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever may send signals can send one straight to us, with any interface and member in it."""
    heard: list[str] = []

    async def main() -> None:
        handlers: list[Any] = []
        inner: Any = SimpleNamespace(
            _disconnect_future=asyncio.get_running_loop().create_future(),
            connected=True,
            add_message_handler=handlers.append,
            remove_message_handler=handlers.remove,
        )
        bus = Bus(inner)

        async def call(path: str, interface: str, member: str, *more: Any, **options: Any) -> list[Any]:
            return [":1.0"] if member == "GetNameOwner" else []

        monkeypatch.setattr(bus, "call", call)
        async with bus._watched(lambda message: heard.append(message.member), "member='JobRemoved'"):
            for sender, kind in ((":1.66", MessageType.SIGNAL), (":1.0", MessageType.METHOD_CALL), (":1.0", MessageType.SIGNAL)):
                handlers[0](SimpleNamespace(message_type=kind, sender=sender, member=f"{sender} {kind.name}"))
        assert handlers == []

    asyncio.run(main())
    assert heard == [":1.0 SIGNAL"]
