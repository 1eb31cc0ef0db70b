# SPDX-License-Identifier: Apache-2.0
"""The thin door to pyxs: xenstore, for coroutines. Every call has a deadline: when xenstored dies, pyxs itself waits for ever.

Calls run in threads; one that does not come back keeps its thread, so who uses this ends by os._exit().
"""

import asyncio
import errno
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import pyxs

from rktd_units.errors import TemporaryError

DEADLINE = 10.0  # seconds
_T = TypeVar("_T")


class Xenstore:
    """A connection; `connect` first."""

    def __init__(self) -> None:
        self._client: Any = None

    async def connect(self) -> None:
        """Raises TemporaryError where no xenstored answers."""

        def connect() -> Any:
            client = pyxs.Client()
            client.connect()
            return client

        self._client = await _call(connect)

    async def read(self, path: str) -> str | None:
        """None for what is not there."""
        try:
            return str((await _call(self._client.read, path.encode("ascii"))).decode("ascii", "replace"))
        except FileNotFoundError:
            return None

    async def write(self, path: str, value: str) -> None:
        await _call(self._client.write, path.encode("ascii"), value.encode("ascii"))

    async def list_names(self, path: str) -> list[str]:
        """Names; none where the path is not there."""
        try:
            return [name.decode("ascii", "replace") for name in await _call(self._client.list, path.encode("ascii"))]
        except FileNotFoundError:
            return []

    async def find_domain(self, name: str) -> int | None:
        """The number of the domain of that name."""
        for number in await self.list_names("/local/domain"):
            if number.isdigit() and await self.read(f"/local/domain/{number}/name") == name:
                return int(number)
        return None

    async def watch(self, paths: list[str], tell: Callable[[str], None]) -> None:
        """`tell`, in the loop's thread, of the watched path of a change; of each at first. `@releaseDomain`: a domain ended or went."""
        loop = asyncio.get_running_loop()

        def begin() -> Any:
            monitor = self._client.monitor()
            for path in paths:
                monitor.watch(path.encode("ascii"), path.encode("ascii"))
            return monitor

        monitor = await _call(begin)

        def listen() -> None:
            while True:
                _, token = monitor.events.get()
                loop.call_soon_threadsafe(tell, token.decode("ascii", "replace"))

        threading.Thread(target=listen, daemon=True).start()


async def _call(function: Callable[..., _T], *arguments: Any) -> _T:
    loop = asyncio.get_running_loop()
    try:
        return await asyncio.wait_for(loop.run_in_executor(None, lambda: function(*arguments)), DEADLINE)
    except TimeoutError:
        raise TemporaryError("xenstored does not answer") from None
    except pyxs.PyXSError as error:
        if error.args and error.args[0] == errno.ENOENT:
            raise FileNotFoundError(errno.ENOENT, "no such node in xenstore", str(arguments[0])) from None
        raise TemporaryError(f"xenstore: {error}") from error
    except OSError as error:
        raise TemporaryError(f"no connection to xenstored: {error}") from error
