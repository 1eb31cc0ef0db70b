# SPDX-License-Identifier: Apache-2.0
"""Whose signals are heard. What the bus itself does is shown in tests/integration."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("dbus_next")

from dbus_next.constants import MessageType

from rktd_units.bus import Bus


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
