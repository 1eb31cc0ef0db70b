# SPDX-License-Identifier: Apache-2.0
"""The thin door to dbus-next: guarded calls, and jobs that are waited for. Costs 60 ms to import: only where something waits."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from dbus_next.aio.message_bus import MessageBus
from dbus_next.constants import BusType, MessageFlag, MessageType
from dbus_next.message import Message

from rktd_units.errors import StateError, TemporaryError

SYSTEMD = "org.freedesktop.systemd1"
_MANAGER_PATH = "/org/freedesktop/systemd1"
_MANAGER = f"{SYSTEMD}.Manager"
_PROPERTIES = "org.freedesktop.DBus.Properties"
_JOB_REMOVED = f"interface='{_MANAGER}',member='JobRemoved',path='{_MANAGER_PATH}'"
_CALL_TIMEOUT = 25.0  # seconds, as libdbus has it
_MANAGE_TIMEOUT = 600.0  # a reload runs all generators; and polkit waits for a human


class BusError(StateError):
    """A D-Bus call that was answered with an error; `name` is the error's."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name


class _PatientSocket:
    """A full send buffer means "wait"; dbus-next takes it for the end of the connection (its issue 153)."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket

    def send(self, data: memoryview) -> int:
        try:
            return int(self._socket.send(data))
        except BlockingIOError:
            return 0

    def sendmsg(self, *arguments: Any) -> int:
        return int(self._socket.sendmsg(*arguments))


class Bus:
    """A connection to the system bus. Calls end: by a reply, a timeout, or the loss of the connection."""

    def __init__(self, bus: Any) -> None:  # a MessageBus, whose types are half there
        self._bus = bus
        self._gone: asyncio.Future[Any] = bus._disconnect_future  # wait_for_disconnect() would cancel it together with its waiter
        self._slots = asyncio.Semaphore(64)  # dbus-daemon closes a connection with more than 128 calls under way

    async def call(
        self,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        body: Sequence[Any] = (),
        *,
        destination: str = SYSTEMD,
        timeout: float = _CALL_TIMEOUT,
        interactive: bool = False,
    ) -> list[Any]:
        """The reply's body. Raises BusError for an error reply, TemporaryError for no reply. `interactive`: polkit may ask the user."""
        flags = MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION if interactive else MessageFlag.NONE
        message = Message(destination, path, interface, member, flags=flags, signature=signature, body=list(body))
        async with self._slots:
            if not self._bus.connected:
                raise TemporaryError("the system bus has gone")
            reply = asyncio.ensure_future(self._bus.call(message))
            await asyncio.wait({reply, self._gone}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if not reply.done():
                reply.cancel()
                raise TemporaryError(f"{destination}: no reply to {member} " + ("before the bus went" if self._gone.done() else "in time"))
            answer = reply.result()
        if answer.message_type == MessageType.ERROR:
            raise BusError(answer.error_name, str(answer.body[0]) if answer.body else "")
        return list(answer.body)

    async def manage(self, member: str, signature: str = "", body: Sequence[Any] = ()) -> list[Any]:
        """A method of PID 1's manager that may take as long as a reload does, and on which polkit may ask the user."""
        return await self.call(_MANAGER_PATH, _MANAGER, member, signature, body, timeout=_MANAGE_TIMEOUT, interactive=True)

    async def run_jobs(self, method: str, units: Sequence[str], tell: Callable[[str, str], None] | None = None) -> dict[str, str]:
        """StartUnit, StopUnit or RestartUnit for each; unit -> result of its job, once all have ended: done, failed, canceled, timeout,
        dependency, skipped. `tell` gets (unit, StatusText) of every unit whose status line changes meanwhile.
        """
        ended: dict[str, str] = {}
        more = asyncio.Event()

        def note(message: Message) -> None:
            if (message.interface, message.member) == (_MANAGER, "JobRemoved"):
                ended[message.body[1]] = message.body[3]
                more.set()
            elif tell and message.member == "PropertiesChanged" and message.body[0] == f"{SYSTEMD}.Service":
                text = message.body[1].get("StatusText")
                if text is not None:
                    tell(unit_of(message.path), text.value)

        changes = (f"interface='{_PROPERTIES}',path_namespace='{_MANAGER_PATH}/unit'",) if tell else ()
        async with self._watched(note, _JOB_REMOVED, *changes):
            jobs = {unit: (await self.manage(method, "ss", (unit, "replace")))[0] for unit in units}
            while not ended.keys() >= set(jobs.values()):
                more.clear()
                waiter = asyncio.ensure_future(more.wait())
                waited: set[asyncio.Future[Any]] = {waiter, self._gone}
                await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                waiter.cancel()
                if self._gone.done():
                    raise TemporaryError("the system bus went while jobs ran")
            return {unit: ended[job] for unit, job in jobs.items()}

    @asynccontextmanager
    async def _watched(self, note: Callable[[Message], None], *rules: str) -> AsyncIterator[None]:
        """`note` gets the signals of PID 1 that the match rules let through, and whatever else PID 1 sends to us.

        Its own only: whoever may send signals can send one straight to us, which no match rule keeps away.
        """
        owner = (await self._call_bus("GetNameOwner", SYSTEMD))[0]

        def hear(message: Message) -> None:
            if message.message_type == MessageType.SIGNAL and message.sender == owner:
                note(message)

        self._bus.add_message_handler(hear)
        try:
            for rule in rules:
                await self._call_bus("AddMatch", f"type='signal',sender='{SYSTEMD}',{rule}")
            await self.call(_MANAGER_PATH, _MANAGER, "Subscribe")
            yield
        finally:
            self._bus.remove_message_handler(hear)

    async def _call_bus(self, member: str, argument: str) -> list[Any]:
        bus = "org.freedesktop.DBus"
        return await self.call("/org/freedesktop/DBus", bus, member, "s", (argument,), destination=bus)


@asynccontextmanager
async def connected_bus() -> AsyncIterator[Bus]:
    """A connection to the system bus. Raises TemporaryError if there is none."""
    bus: Any
    try:
        bus = MessageBus(bus_type=BusType.SYSTEM)
        bus._writer.sock = _PatientSocket(bus._writer.sock)
        await asyncio.wait_for(bus.connect(), _CALL_TIMEOUT)
    except (OSError, EOFError, TimeoutError) as error:
        raise TemporaryError(f"no connection to the system bus: {error}") from error
    try:
        yield Bus(bus)
    finally:
        if bus.connected:
            bus.disconnect()
        if bus._disconnect_future.done():
            bus._disconnect_future.exception()  # else asyncio complains that nobody asked


def unit_of(path: str) -> str:
    """The unit that an object path is of (sd_bus_path_decode(3): _XX is a byte in hexadecimal)."""
    first, *rest = path.rpartition("/")[2].split("_")
    return first + "".join(chr(int(part[:2], 16)) + part[2:] for part in rest)
