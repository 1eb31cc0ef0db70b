# SPDX-License-Identifier: Apache-2.0
"""How long a service is waited for. What the bus itself does is shown in tests/integration."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("dbus_next")

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
