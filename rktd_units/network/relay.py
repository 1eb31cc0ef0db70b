# SPDX-License-Identifier: Apache-2.0
"""What systemd-socket-proxyd is for TCP, for UDP: started by rktd-port-udp@.socket, it passes datagrams on and ends when nobody talks.

`relay ADDRESS:PORT`. Only for those who come by loopback; nftables forwards all others.
"""

import select
import socket
import time
from contextlib import suppress
from typing import Any

_LISTENER = 3  # SD_LISTEN_FDS_START
_IDLE = 30.0  # seconds, of one client and of all
_CLIENTS_MAX = 1000
_DATAGRAM_MAX = 65535


class Relay:
    """One listening socket, one target, and a socket for each client, so that answers find their way."""

    def __init__(self, listener: socket.socket, target: tuple[str, int]) -> None:
        self._listener = listener
        self._target = target
        self._clients: dict[Any, socket.socket] = {}
        self._names: dict[int, tuple[Any, float]] = {}  # descriptor -> client, when it last spoke
        self._poll = select.poll()
        self._poll.register(listener, select.POLLIN)

    def run(self, idle: float = _IDLE) -> None:
        """Until nothing has come from anywhere for `idle` seconds."""
        while events := self._poll.poll(idle * 1000):
            for descriptor, _ in events:
                if descriptor == self._listener.fileno():
                    self._pass_on()
                else:
                    self._pass_back(descriptor)
            self._forget(time.monotonic() - idle)
        self._forget(time.monotonic())

    def _pass_on(self) -> None:
        data, client = self._listener.recvfrom(_DATAGRAM_MAX)
        door = self._clients.get(client)
        if door is None:
            if len(self._clients) >= _CLIENTS_MAX:
                return
            door = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            door.connect(self._target)
            self._clients[client] = door
            self._poll.register(door, select.POLLIN)
        self._names[door.fileno()] = (client, time.monotonic())
        with suppress(OSError):  # a datagram may be lost: nobody listens there
            door.send(data)

    def _pass_back(self, descriptor: int) -> None:
        client, _ = self._names[descriptor]
        self._names[descriptor] = (client, time.monotonic())
        with suppress(OSError):
            self._listener.sendto(self._clients[client].recv(_DATAGRAM_MAX), client)

    def _forget(self, before: float) -> None:
        for descriptor, (client, last) in list(self._names.items()):
            if last < before:
                self._poll.unregister(descriptor)
                self._clients.pop(client).close()
                del self._names[descriptor]


def main(argv: list[str]) -> int:
    """`relay ADDRESS:PORT`, IPv4, with the listening socket as descriptor 3."""
    address, _, port = argv[1].rpartition(":")
    Relay(socket.socket(fileno=_LISTENER), (address, int(port))).run()
    return 0
