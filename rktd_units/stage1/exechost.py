# SPDX-License-Identifier: Apache-2.0
"""The host's end of `podctl exec` in a Xen guest: passes frames between clients on a socket that only root may open and the guest's agent.

A part of the domain's supervisor. What comes from the guest is hostile: it goes to the client whose session it names, within what that one
has granted; anything else ends the channel. A client's frames are not looked into.
"""

import asyncio
import os
import select
from collections.abc import Awaitable, Callable
from contextlib import suppress

from rktd_units.errors import RktdError
from rktd_units.stage1 import frames
from rktd_units.xenring import Ring, RingError

EXEC_SOCKET = "exec"  # in the pod's directory
_TO_GUEST = (frames.OPEN, frames.INPUT, frames.END, frames.SIGNAL, frames.SIZE, frames.GRANT)
_READ_SIZE = 64 * 1024
_PING = frames.frame(0, frames.HANGUP)  # of a session that never is: an agent takes it, and does nothing
_PING_STEP = 5.0  # seconds
_SILENT_STEPS = 6  # without anything taken, after which there is no agent: one in emulation, ten times slower, takes it within one
_GONE_STEP = 0.2  # seconds between two looks whether a client that waits for the agent is still there


class Client:
    """One session."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.window = frames.WINDOW  # what the guest may send now
        self.input = 0  # what has gone to the guest, and is not granted yet


class ExecHost:
    """`open_ring` is called when a client comes: a guest is up some time after its domain. Its errors end all clients that wait for it."""

    def __init__(self, path: str, open_ring: Callable[[], Awaitable[Ring]]) -> None:
        self._path = path
        self._open_ring = open_ring
        self._ring: Ring | None = None
        self._opening: asyncio.Task[None] | None = None  # for all who wait for it, and as long as there is one
        self._waiting = 0
        self._watcher: asyncio.Task[None] | None = None
        self._silent_at = -1  # Ring.taken() of an agent that takes nothing any more
        self._splitter = frames.Splitter()
        self._clients: dict[int, Client] = {}
        self._last = 0
        self._pending = bytearray()
        self._has_room = asyncio.Event()  # the guest takes what it is sent; while it does not, no client is read
        self._has_room.set()
        self._server: asyncio.AbstractServer | None = None

    async def start(self) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self._path)
        before = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._serve, self._path)
        finally:
            os.umask(before)

    def close(self) -> None:
        """The clients see an end without an exit code; nothing holds the guest's memory any more."""
        if self._server:
            self._server.close()
        for task in (self._opening, self._watcher):
            if task is not None:
                task.cancel()
        self._drop_all()
        self._forget_ring()

    def _forget_ring(self) -> None:
        if self._ring is not None:
            asyncio.get_running_loop().remove_reader(self._ring.fileno())
            self._ring = None
        self._pending.clear()
        self._has_room.set()
        self._open_ring = _refuse

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._last += 1
        number = self._last
        self._clients[number] = Client(writer)
        try:
            if not await self._reach(writer):
                return
            splitter = frames.Splitter()
            while data := await reader.read(_READ_SIZE):
                for _, kind, part in splitter.feed(data):
                    self._pass(number, kind, part)
                await self._has_room.wait()
        except (OSError, RktdError, RingError, frames.FrameError) as error:
            _tell(writer, str(error))
        finally:
            if self._clients.pop(number, None) is not None and self._ring is not None:
                self._send(frames.frame(number, frames.HANGUP))
            writer.close()

    async def _reach(self, writer: asyncio.StreamWriter) -> bool:
        """Whether the client may speak to the agent; False when it has gone while it waited. Raises RingError, OSError, RktdError."""
        if self._ring is None:
            if _has_gone(writer):
                return False
            if self._opening is None:
                self._opening = asyncio.ensure_future(self._open())
            if not await self._await_opening(self._opening, writer):
                return False
        if self._ring is None or self._ring.taken() == self._silent_at:
            raise RingError("its agent takes nothing")
        if self._watcher is None or self._watcher.done():
            self._watcher = asyncio.ensure_future(self._watch())
        return True

    async def _await_opening(self, opening: "asyncio.Task[None]", writer: asyncio.StreamWriter) -> bool:
        self._waiting += 1
        try:
            while not opening.done():
                await asyncio.wait((opening,), timeout=_GONE_STEP)
                if not opening.done() and _has_gone(writer):
                    return False
            opening.result()
            return True
        finally:
            self._waiting -= 1
            if not self._waiting:
                opening.cancel()
            if self._opening is opening and (opening.done() or not self._waiting):
                self._opening = None

    async def _open(self) -> None:
        self._ring = await self._open_ring()
        asyncio.get_running_loop().add_reader(self._ring.fileno(), self._look)

    async def _watch(self) -> None:
        """While there are clients: who waits for an agent that is no more is told. A command may be silent as long as it likes."""
        steps = 0
        while self._clients and (ring := self._ring) is not None:
            before = ring.taken()
            if self._is_idle(ring):
                self._send(_PING)
            await asyncio.sleep(_PING_STEP)
            steps = steps + 1 if self._ring is ring and ring.taken() == before else 0
            if steps >= _SILENT_STEPS:
                self._silent_at = before
                for number, client in self._clients.items():
                    _tell(client.writer, f"its agent has taken nothing for {_SILENT_STEPS * _PING_STEP:g} s")
                    self._pending += frames.frame(number, frames.HANGUP)
                self._drop_all()

    def _is_idle(self, ring: Ring) -> bool:
        try:
            return not self._pending and ring.space() == ring.size
        except RingError:  # the next look finds it, too
            return True

    def _pass(self, number: int, kind: int, data: bytes) -> None:
        client = self._clients.get(number)
        if client is None or kind not in _TO_GUEST:
            return
        if kind == frames.GRANT:
            client.window += frames.granted(data)
        elif kind == frames.INPUT:
            client.input += len(data)
        self._send(frames.frame(number, kind, data))

    def _send(self, data: bytes) -> None:
        self._pending += data
        self._look()
        if self._ring is not None and len(self._pending) >= frames.WINDOW:
            self._has_room.clear()

    def _look(self) -> None:
        """Takes what the ring has, and gives it what it has space for."""
        if (ring := self._ring) is None:
            return
        try:
            ring.clear()
            moved = False
            if count := ring.available():
                for frame in self._splitter.feed(ring.read(count)):
                    self._deliver(*frame)
                moved = True
            if count := min(ring.space(), len(self._pending)):
                ring.write(bytes(self._pending[:count]))
                del self._pending[:count]
                if len(self._pending) < frames.WINDOW:
                    self._has_room.set()
                moved = True
            if moved:
                ring.call()
        except (OSError, RingError, frames.FrameError):
            self._forget_ring()
            self._drop_all()

    def _deliver(self, number: int, kind: int, data: bytes) -> None:
        """Each frame costs the guest a part of what it was granted, or of the client's input: no session is sent frames without end."""
        client = self._clients.get(number)
        if client is None:  # it has gone meanwhile
            return
        if kind in (frames.OUTPUT, frames.ERROR):
            client.window -= len(data)
            if client.window < 0 or not data:
                raise frames.FrameError("the guest sends more than it may, or nothing")
        elif kind == frames.GRANT:
            count = frames.granted(data)
            client.input -= count
            if client.input < 0 or not count:
                raise frames.FrameError("the guest grants more than it has taken, or nothing")
        elif kind != frames.EXIT or len(data) != 1:
            raise frames.FrameError(f"a frame of kind {kind} with {len(data)} bytes")
        client.writer.write(frames.frame(0, kind, data))
        if kind == frames.EXIT:
            del self._clients[number]
            client.writer.close()

    def _drop_all(self) -> None:
        for client in self._clients.values():
            client.writer.close()
        self._clients.clear()
        self._has_room.set()  # for those who wait for it: they see that they have no session any more


def _tell(writer: asyncio.StreamWriter, reason: str) -> None:
    text = f"podctl: the guest cannot be reached: {reason}\n".encode()
    writer.write(frames.frame(0, frames.ERROR, text[: frames.DATA_MAX]))


def _has_gone(writer: asyncio.StreamWriter) -> bool:
    """Whether the client has closed its end, however much of what it sent is not read yet."""
    if writer.is_closing():
        return True
    poller = select.poll()
    poller.register(writer.get_extra_info("socket").fileno(), 0)
    return any(events & (select.POLLHUP | select.POLLERR) for _, events in poller.poll(0))


async def _refuse() -> Ring:
    raise RingError("its agent does not keep to the protocol")
